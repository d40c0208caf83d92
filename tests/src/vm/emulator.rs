//! One run of the emulator: a process, what it prints, and its end.
//!
//! QEMU without hardware's help (`tcg`): nested virtualisation is where such tests differ from machine to machine. The
//! guest reaches the host's loopback as 10.0.2.2. Whoever drops a [`Vm`] pulls its plug. With `GOLDSYNC_VM_ALOUD` set, what
//! it prints is printed as it comes.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::console::{self, Lines};

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// The emulator of boards.
pub const QEMU_ARM: &str = "qemu-system-arm";

/// How long a guest may say nothing at all. It is no measure of anything: a boot takes 5 to 10 seconds of processor time, and
/// other tests may have the processor.
const PATIENCE: Duration = Duration::from_secs(600);

/// More lines than any story has: a guest that starts again and again without end must not keep a test for ever.
const LINES_MAX: usize = 4000;

/// The memory of a guest.
const MEMORY: &str = "512";

/// What starts the guest.
#[derive(Clone, Debug)]
pub enum Firmware {
    /// The emulator loads kernel and initramfs itself.
    Kernel {
        /// The kernel.
        kernel: PathBuf,
        /// The initramfs.
        initrd: PathBuf,
        /// What is added to the kernel's command line.
        append: String,
    },
    /// SeaBIOS, from the disk's boot sector.
    Bios,
    /// OVMF, with its variables in a file of the machine's own.
    Uefi {
        /// The firmware.
        code: PathBuf,
        /// Its variables.
        vars: PathBuf,
    },
    /// A board's first program, which looks for U-Boot on its card.
    Board,
}

impl Firmware {
    /// The emulator that has it.
    fn emulator(&self) -> &'static str {
        if matches!(self, Self::Board) { QEMU_ARM } else { QEMU }
    }
}

/// A machine that is switched on.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    keyboard: ChildStdin,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Vm {
    /// Switches it on. `orders` is what the image's init runs; it lies beside the disk.
    pub fn start(firmware: &Firmware, disk: &Path, orders: &str) -> Result<Self> {
        Self::start_beside(firmware, disk, orders, None)
    }

    /// The same, with one more disk: `/dev/vdc`.
    pub fn start_beside(firmware: &Firmware, disk: &Path, orders: &str, beside: Option<&Path>) -> Result<Self> {
        let paper = disk.with_extension("orders");
        // A block device is a whole number of blocks. What reads it as a script must not meet zeros.
        let mut script = orders.as_bytes().to_vec();
        script.resize((script.len() + 1).next_multiple_of(64 << 10), b'\n');
        fs::write(&paper, script)?;
        // The guest must not outlive a test that was killed.
        let mut command = Command::new("setpriv");
        let emulator = firmware.emulator();
        command.args(["--pdeathsig", "KILL", "--", emulator]).args(arguments(firmware, disk, &paper, beside));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {emulator}"))?;
        let (sender, lines) = channel();
        let aloud = std::env::var_os("GOLDSYNC_VM_ALOUD").is_some();
        let console = child.stdout.take().context("the guest's console")?;
        let keyboard = child.stdin.take().context("the guest's keyboard")?;
        let complaints = child.stderr.take().context("the emulator's complaints")?;
        for pipe in [Box::new(console) as Box<dyn Read + Send>, Box::new(complaints)] {
            let sender = sender.clone();
            thread::spawn(move || {
                read(pipe, |line| {
                    if aloud {
                        eprintln!("| {line}");
                    }
                    sender.send(line).is_ok()
                })
            });
        }
        Ok(Self { child, keyboard, lines, said: Vec::new() })
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        writeln!(self.keyboard, "{line}").context("type on the guest's console")
    }

    /// Waits for a mark, and returns what stands behind its name. A guest that says that it is stuck is an error.
    pub fn wait(&mut self, name: &str) -> Result<String> {
        self.wait_for(name, |line| console::marked(line, name).map(str::to_owned))
    }

    /// Waits for a line that contains `words`.
    pub fn wait_line(&mut self, words: &str) -> Result<String> {
        self.wait_for(words, |line| line.contains(words).then(|| line.to_owned()))
    }

    fn wait_for(&mut self, what: &str, found: impl Fn(&str) -> Option<String>) -> Result<String> {
        loop {
            let Some(line) = self.line(Instant::now() + PATIENCE).with_context(|| format!("waiting for {what:?}"))?
            else {
                bail!("the machine went off before {what:?}:\n{}", self.said());
            };
            if let Some(answer) = found(&line) {
                return Ok(answer);
            }
            ensure!(console::marked(&line, "stuck").is_none(), "waiting for {what:?}:\n{}", self.said());
        }
    }

    /// The next line; `None` when the machine is off.
    fn line(&mut self, until: Instant) -> Result<Option<String>> {
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.said.push(line.clone());
                ensure!(self.said.len() < LINES_MAX, "it talks without end; last: {line}");
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("nothing in {PATIENCE:?}:\n{}", self.said()),
        }
    }

    /// Waits until it has switched itself off.
    pub fn off(&mut self) -> Result<()> {
        while self.line(Instant::now() + PATIENCE).context("waiting for the machine to go off")?.is_some() {}
        let status = self.child.wait()?;
        ensure!(status.success(), "the emulator ended with {status}:\n{}", self.said());
        Ok(())
    }

    /// Lets it run for so long; returns whether it switched itself off meanwhile.
    pub fn run_for(&mut self, span: Duration) -> Result<bool> {
        let until = Instant::now() + span;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => return Ok(true),
            }
        }
    }

    /// Pulls the plug.
    pub fn cut(mut self) -> Result<Vec<String>> {
        self.child.kill().and_then(|()| self.child.wait()).context("kill the emulator")?;
        while let Ok(line) = self.lines.recv() {
            self.said.push(line);
        }
        Ok(std::mem::take(&mut self.said))
    }

    /// All marks so far.
    pub fn marks(&self) -> Vec<&str> {
        self.said.iter().filter_map(|line| console::mark(line)).collect()
    }

    /// All that it printed so far.
    pub fn said(&self) -> String {
        self.said.join("\n")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a pipe to its end.
fn read(mut pipe: impl Read, mut take: impl FnMut(String) -> bool) {
    let (mut lines, mut buffer) = (Lines::default(), [0; 4096]);
    while let Ok(read @ 1..) = pipe.read(&mut buffer) {
        for line in lines.push(&buffer[..read]) {
            if !take(line) {
                return;
            }
        }
    }
    let rest = lines.rest();
    if !rest.is_empty() {
        take(rest);
    }
}

fn arguments(firmware: &Firmware, disk: &Path, orders: &Path, beside: Option<&Path>) -> Vec<OsString> {
    let mut words = split("-display none -serial stdio -monitor none");
    let drive = |options: &str, file: &Path| {
        let mut value = OsString::from(format!("{options},format=raw,file="));
        value.push(file);
        [OsString::from("-drive"), value]
    };
    if matches!(firmware, Firmware::Board) {
        words.extend(split("-machine orangepi-pc -nic none"));
        words.extend(drive("if=sd", disk));
        return words;
    }
    // The machine has one processor, and need not be kept in step with others: a tenth faster than with threads.
    words.extend(split(&format!("-accel tcg,thread=single -m {MEMORY}")));
    // Without what makes a real processor fill and copy memory fast: an emulator does that byte by byte, and looks each time
    // whether code is overwritten, so that a page that held much code takes it ages to clear.
    words.extend(split("-cpu max,erms=off,fsrm=off"));
    words.extend(split("-netdev user,id=net -device virtio-net-pci,netdev=net,romfile="));
    // What the guest has flushed is in the host's page cache, and that outlives the emulator.
    words.extend(drive("if=virtio,cache=writeback", disk));
    words.extend(drive("if=virtio,readonly=on", orders));
    if let Some(beside) = beside {
        words.extend(drive("if=virtio,cache=writeback", beside));
    }
    match firmware {
        Firmware::Kernel { kernel, initrd, append } => {
            words.extend(["-kernel".into(), kernel.into(), "-initrd".into(), initrd.into()]);
            words.extend(["-append".into(), format!("{} {append}", super::KERNEL_WORDS).into()]);
        }
        Firmware::Uefi { code, vars } => {
            words.extend(split("-machine q35"));
            words.extend(drive("if=pflash,readonly=on", code));
            words.extend(drive("if=pflash", vars));
        }
        Firmware::Bios | Firmware::Board => {}
    }
    words
}

fn split(words: &str) -> Vec<OsString> {
    words.split_whitespace().map(OsString::from).collect()
}
