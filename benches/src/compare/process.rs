//! What a process costs, told by the kernel: seconds on the wall and on processors, and memory at its fullest.
//!
//! A client is started here and waited for with `wait4`, so that its CPU time is exact and includes children that it
//! waited for. A server is only looked at: its processor clock before and after, in nanoseconds; of children that it waited
//! for, which have no clock any more, ticks of 10 ms (`/proc/PID/stat`). Memory is sampled
//! every few milliseconds, over the process and its children, because `/proc` is gone when the process is: a peak that
//! lasts less is missed, and the resident peak (`VmHWM`) is the kernel's own as of the last sample.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// Between two looks at a process's memory.
const SAMPLE: Duration = Duration::from_millis(4);

/// What a program took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    /// Seconds on the wall.
    pub wall: f64,
    /// Seconds of processor, user and system.
    pub cpu: f64,
    /// Peak resident memory, bytes: what it mapped of files is part of it.
    pub resident: u64,
    /// Peak anonymous memory, bytes: what nothing can take back.
    pub anonymous: u64,
    /// Bytes of files that it dirtied, as the kernel's block layer counts them; 0 on file systems without a disk.
    pub dirtied: u64,
}

impl Cost {
    /// This and what came after it.
    pub fn then(self, next: Self) -> Self {
        Self {
            wall: self.wall + next.wall,
            cpu: self.cpu + next.cpu,
            resident: self.resident.max(next.resident),
            anonymous: self.anonymous.max(next.anonymous),
            dirtied: self.dirtied + next.dirtied,
        }
    }
}

/// A program that serves until this is dropped.
#[derive(Debug)]
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program's output and its cost.
#[derive(Debug)]
pub struct Finished {
    /// What it printed.
    pub stdout: String,
    /// What it took.
    pub cost: Cost,
}

/// A program that was stopped because it took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub Duration);

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stopped after {} s, which was not enough", self.0.as_secs())
    }
}

impl std::error::Error for TooLong {}

/// Runs `command` to its end, which must be a good one. `scratch` takes its output.
pub fn run(command: Command, scratch: &Path) -> Result<Finished> {
    run_within(command, scratch, Duration::MAX)
}

/// The same, but not for longer than `limit`: [`TooLong`].
pub fn run_within(mut command: Command, scratch: &Path, limit: Duration) -> Result<Finished> {
    let line = format!("{command:?}");
    let (out, err) = (scratch.join("stdout"), scratch.join("stderr"));
    command.stdin(std::process::Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("start {line}"))?;
    let sampler = Sampler::start(child.id());
    let in_time = wait_until(&child, limit)?;
    let wall = start.elapsed().as_secs_f64();
    let (code, usage) = wait(child)?;
    let (resident, anonymous) = sampler.stop();
    let (stdout, stderr) = (fs::read(&out)?, fs::read(&err)?);
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    let cost = Cost { wall, cpu: usage.cpu, resident, anonymous, dirtied: usage.dirtied };
    ensure!(in_time, TooLong(limit));
    if code != 0 {
        bail!("{line} ended with {code}:\n{stdout}{}", String::from_utf8_lossy(&stderr));
    }
    Ok(Finished { stdout, cost })
}

/// Waits until the child has ended, and kills it if it does not in time; it is there to be waited for afterwards either way.
#[allow(unsafe_code, reason = "the standard library cannot wait without taking the child away")]
fn wait_until(child: &Child, limit: Duration) -> Result<bool> {
    let pid = child.id();
    let (ended, watch) = std::sync::mpsc::channel::<()>();
    // The child stays a zombie until `wait`, so that its number is nobody else's when it is killed.
    let killer = std::thread::spawn(move || {
        let late = watch.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            // SAFETY: takes numbers; the process is our own child, not yet taken away.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
        }
        late
    });
    // SAFETY: plain old data, for which all zeros is a value.
    let mut told: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local of the right type; the process is our own child.
    let got = unsafe { libc::waitid(libc::P_PID, pid, &mut told, libc::WEXITED | libc::WNOWAIT) };
    ensure!(got == 0, "wait for process {pid}: {}", std::io::Error::last_os_error());
    drop(ended);
    Ok(!killer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

struct Usage {
    cpu: f64,
    dirtied: u64,
}

#[allow(unsafe_code, reason = "the standard library waits without asking what the child used")]
fn wait(child: Child) -> Result<(i32, Usage)> {
    let (mut status, pid) = (0, child.id() as libc::pid_t);
    // SAFETY: plain old data, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals of the right type; `pid` is our own child, waited for only here.
    let got = unsafe { libc::wait4(pid, &mut status, 0, &mut usage) };
    ensure!(got == pid, "wait for process {pid}: {}", std::io::Error::last_os_error());
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 };
    let dirtied = usage.ru_oublock.max(0) as u64 * 512;
    Ok((code, Usage { cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime), dirtied }))
}

/// Looks at the memory of a process and its children until it is stopped.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    peaks: Arc<[AtomicU64; 2]>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Begins.
    pub fn start(pid: u32) -> Self {
        let (stop, peaks) = (Arc::new(AtomicBool::new(false)), Arc::new([AtomicU64::new(0), AtomicU64::new(0)]));
        let (until, into) = (stop.clone(), peaks.clone());
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let now = family(pid)
                    .into_iter()
                    .filter_map(memory)
                    .fold((0, 0), |sum, one| (sum.0 + one.resident_peak, sum.1 + one.anonymous));
                into[0].fetch_max(now.0, Ordering::Relaxed);
                into[1].fetch_max(now.1, Ordering::Relaxed);
                std::thread::sleep(SAMPLE);
            }
        });
        Self { stop, peaks, thread: Some(thread) }
    }

    /// Ends; peak resident and peak anonymous memory, bytes.
    pub fn stop(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
        (self.peaks[0].load(Ordering::Relaxed), self.peaks[1].load(Ordering::Relaxed))
    }
}

/// A process's memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// Resident at its fullest.
    pub resident_peak: u64,
    /// Anonymous now.
    pub anonymous: u64,
}

/// What `/proc/PID/status` says; `None` if the process is gone.
pub fn memory(pid: u32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let fields: BTreeMap<&str, u64> = text
        .lines()
        .filter_map(|line| {
            let (key, rest) = line.split_once(':')?;
            Some((key, rest.split_whitespace().next()?.parse::<u64>().ok()? << 10))
        })
        .collect();
    let field = |key| fields.get(key).copied().unwrap_or(0);
    Some(Memory { resident: field("VmRSS"), resident_peak: field("VmHWM"), anonymous: field("RssAnon") })
}

/// A process and everything that descends from it, as far as the kernel tells.
fn family(pid: u32) -> Vec<u32> {
    let (mut all, mut at) = (vec![pid], 0);
    while let Some(parent) = all.get(at).copied() {
        at += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    all
}

/// A running server, looked at from a moment on.
#[derive(Debug)]
pub struct Meter {
    pid: u32,
    cpu: f64,
    sampler: Sampler,
}

impl Meter {
    /// From now on.
    pub fn start(pid: u32) -> Self {
        // Forgets the resident peak so far; where that is not allowed, the peak is since the process's start.
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Self { pid, cpu: cpu(pid), sampler: Sampler::start(pid) }
    }

    /// Until now. The wall is the client's to tell.
    pub fn stop(self) -> Cost {
        // A child that served us is counted when its parent has waited for it.
        std::thread::sleep(Duration::from_millis(60));
        let (resident, anonymous) = self.sampler.stop();
        Cost { cpu: cpu(self.pid) - self.cpu, resident, anonymous, ..Cost::default() }
    }
}

/// Seconds of processor that a process, its present children and those that it waited for have used.
pub fn cpu(pid: u32) -> f64 {
    family(pid).into_iter().map(|pid| own_cpu(pid) + children_ticks(pid) as f64 / ticks_per_second()).sum()
}

/// A process's own, all threads that it ever had together; 0 if it is gone.
#[allow(unsafe_code, reason = "the standard library has no clock of another process")]
fn own_cpu(pid: u32) -> f64 {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both pointers are to live locals of the right type.
    let told = unsafe {
        libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) == 0 && libc::clock_gettime(clock, &mut time) == 0
    };
    if told { time.tv_sec as f64 + time.tv_nsec as f64 / 1e9 } else { 0.0 }
}

/// User and system time of children that were waited for.
fn children_ticks(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; the fields follow the last one. utime, stime, cutime, cstime.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[allow(unsafe_code, reason = "the standard library does not tell the clock's ticks")]
fn ticks_per_second() -> f64 {
    // SAFETY: takes a number and returns one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_cost_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done"]);
        let finished = run(command, folder.path()).unwrap();
        assert_eq!(finished.stdout, "done\n");
        assert!(finished.cost.cpu > 0.0 && finished.cost.wall > 0.0, "{:?}", finished.cost);
    }

    #[test]
    fn a_program_that_fails_is_an_error_with_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo why >&2; exit 3"]);
        let error = run(command, folder.path()).unwrap_err().to_string();
        assert!(error.contains("ended with 3") && error.contains("why"), "{error}");
    }

    #[test]
    fn a_program_that_takes_too_long_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let error = run_within(command, folder.path(), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&TooLong(Duration::from_millis(50))));
    }

    #[test]
    fn this_process_is_seen() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.anonymous > 0 && memory.resident >= memory.anonymous && memory.resident_peak >= memory.resident);
        assert_eq!(super::memory(u32::MAX), None);
        assert!(family(std::process::id()).contains(&std::process::id()));
    }

    #[test]
    fn another_process_s_seconds_are_told_finely_while_it_runs() {
        let mut command = Command::new("sh");
        let busy = Server(command.args(["-c", "while :; do :; done"]).spawn().unwrap());
        let (mut last, mut steps) = (cpu(busy.0.id()), 0);
        while steps < 3 {
            let now = cpu(busy.0.id());
            assert!(now >= last);
            // Less than a tick: it is the clock that counts.
            steps += usize::from(now > last && now - last < 0.01);
            last = now;
        }
        // No kernel has a process of that number.
        assert_eq!(own_cpu(1 << 22), 0.0);
    }
}
