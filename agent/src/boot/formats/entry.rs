//! Boot Loader Specification, type 1: an entry's text, the tries in its file's name, and the order in which systemd-boot takes entries.
//!
//! ```text
//! goldsync-b-7+2-1.conf          title    goldsync web:7 (slot b)
//!              │ │                sort-key goldsync
//!              │ └ tries done     version  7
//!              └── tries left     linux    /goldsync/vmlinuz-0f3a...
//! ```
//! Nothing here fails: a line that is no `KEY VALUE` is passed over, as the loader does, and a name without a counter is that of an
//! entry that is not counted.

use std::cmp::Ordering;

/// The longest pattern that is compared; what systemd-boot compares with is a name.
const PATTERN_MAX: usize = 1 << 10;

/// The most of an entry's file that is read. What loaders and people write is below 4 KiB.
pub const TEXT_MAX: u64 = 64 << 10;

/// A file's name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// All before the counter, without `.conf`.
    pub stem: String,
    /// Tries left and done; `None`: they are not counted.
    pub tries: Option<(u32, u32)>,
}

impl Name {
    /// Takes `STEM[+LEFT[-DONE]].conf` apart; `None` if the loader would not look at such a file.
    pub fn read(file: &str) -> Option<Self> {
        let cut = file.len().checked_sub(".conf".len())?;
        let (stem, suffix) = (file.get(..cut)?, file.get(cut..)?);
        let lower = file.to_ascii_lowercase();
        if !suffix.eq_ignore_ascii_case(".conf")
            || stem.is_empty()
            || lower.starts_with('.')
            || lower.starts_with("auto-")
        {
            return None;
        }
        let counted = stem.rsplit_once('+').and_then(|(stem, counter)| {
            let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
            Some(Self { stem: stem.to_owned(), tries: Some((number(left)?, number(done)?)) })
        });
        Some(counted.unwrap_or_else(|| Self { stem: stem.to_owned(), tries: None }))
    }

    /// The file's name.
    pub fn file(&self) -> String {
        match self.tries {
            None => format!("{}.conf", self.stem),
            Some((left, 0)) => format!("{}+{left}.conf", self.stem),
            Some((left, done)) => format!("{}+{left}-{done}.conf", self.stem),
        }
    }

    /// What the loader knows the entry by.
    pub fn id(&self) -> String {
        format!("{}.conf", self.stem).to_ascii_lowercase()
    }
}

/// Digits only: `parse` would also take a sign.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// What of an entry's text matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// Sorts first among the loader's keys.
    pub sort_key: Option<String>,
    /// The machine it belongs to.
    pub machine_id: Option<String>,
    /// The newest first.
    pub version: Option<String>,
    /// `linux`, `efi` or `uki`: what is started.
    pub loaded: Option<String>,
    /// Every `initrd`.
    pub initrds: Vec<String>,
}

impl Text {
    /// Reads a text. Of a key that comes twice, the last counts, but for `initrd`.
    pub fn read(text: &str) -> Self {
        let mut read = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let Some((key, value)) = line.split_once([' ', '\t']) else { continue };
            let value = value.trim().to_owned();
            match key {
                "sort-key" => read.sort_key = Some(value),
                "machine-id" => read.machine_id = Some(value),
                "version" => read.version = Some(value),
                "linux" | "efi" | "uki" => read.loaded = Some(value),
                "initrd" => read.initrds.push(value),
                _ => {}
            }
        }
        read
    }
}

/// Which of two entries systemd-boot lists first: those with tries left before those without, then by sort key, machine, the newer
/// version, the greater id, more tries left, fewer done.
pub fn order(a: (&Name, &Text), b: (&Name, &Text)) -> Ordering {
    let ((a, a_text), (b, b_text)) = (a, b);
    let spent = |name: &Name| matches!(name.tries, Some((0, _)));
    let keyed = match (&a_text.sort_key, &b_text.sort_key) {
        (Some(a_key), Some(b_key)) => a_key
            .cmp(b_key)
            .then_with(|| a_text.machine_id.cmp(&b_text.machine_id))
            .then_with(|| versions(text(&b_text.version), text(&a_text.version))),
        (a_key, b_key) => a_key.is_none().cmp(&b_key.is_none()),
    };
    let counted = match (a.tries, b.tries) {
        (Some((a_left, a_done)), Some((b_left, b_done))) => b_left.cmp(&a_left).then(a_done.cmp(&b_done)),
        _ => Ordering::Equal,
    };
    spent(a).cmp(&spent(b)).then(keyed).then_with(|| versions(&b.id(), &a.id())).then(counted)
}

fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

/// Which of two versions is the newer one, by the UAPI group's version format: `1~rc1 < 1 < 1.1 < 1.10`, `1-2 < 1.1`.
pub fn versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (known(a), known(b));
        if let Some(order) = mark(&mut a, &mut b, b'~') {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return a.is_empty().cmp(&b.is_empty()).reverse();
        }
        for separator in [b'-', b'^', b'.'] {
            if let Some(order) = mark(&mut a, &mut b, separator) {
                return order;
            }
        }
        let digits = [a, b].iter().any(|rest| rest.first().is_some_and(u8::is_ascii_digit));
        let of_kind = |byte: &u8| if digits { byte.is_ascii_digit() } else { byte.is_ascii_alphabetic() };
        let ((a_part, a_rest), (b_part, b_rest)) = (split(a, of_kind), split(b, of_kind));
        let order = if digits { numbers(a_part, b_part) } else { a_part.cmp(b_part) };
        if order.is_ne() {
            return order;
        }
        (a, b) = (a_rest, b_rest);
    }
}

/// Leaves out what no version is made of.
fn known(text: &[u8]) -> &[u8] {
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    &text[text.iter().position(known).unwrap_or(text.len())..]
}

/// A separator that only one of them has makes that one older; one that both have is passed.
fn mark(a: &mut &[u8], b: &mut &[u8], separator: u8) -> Option<Ordering> {
    let (in_a, in_b) = (a.first() == Some(&separator), b.first() == Some(&separator));
    if in_a != in_b {
        return Some(in_b.cmp(&in_a));
    }
    if in_a {
        (*a, *b) = (&a[1..], &b[1..]);
    }
    None
}

fn split(text: &[u8], of_kind: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !of_kind(byte)).unwrap_or(text.len()))
}

/// By value, whatever their length; no digits at all are less than any.
fn numbers(a: &[u8], b: &[u8]) -> Ordering {
    let value = |digits: &[u8]| digits.iter().skip_while(|digit| **digit == b'0').copied().collect::<Vec<u8>>();
    let (a_value, b_value) = (value(a), value(b));
    b.is_empty().cmp(&a.is_empty()).then(a_value.len().cmp(&b_value.len())).then_with(|| a_value.cmp(&b_value))
}

/// Whether `name` is what a pattern of `loader.conf` means: `*` is any text, `?` one character, `[...]` one of them.
pub fn matches(pattern: &str, name: &str) -> bool {
    if pattern.len() > PATTERN_MAX {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.to_ascii_lowercase().chars().collect(), name.to_ascii_lowercase().chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on after the last star, one more character in it: never two stars deep.
    let mut star = None;
    loop {
        let step = match (pattern.get(p), name.get(n)) {
            (None, None) => return true,
            (Some('*'), _) => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            (Some('['), Some(c)) => set(&pattern[p + 1..], *c),
            (Some('\\'), Some(c)) => pattern.get(p + 1).is_some_and(|next| next == c).then_some(2),
            (Some('?'), Some(_)) => Some(1),
            (Some(expected), Some(c)) => (expected == c).then_some(1),
            (Some(_), None) | (None, Some(_)) => None,
        };
        match (step, star) {
            (Some(length), _) => (p, n) = (p + length, n + 1),
            (None, Some((after, from))) if from < name.len() => {
                star = Some((after, from + 1));
                (p, n) = (after, from + 1);
            }
            (None, _) => return false,
        }
    }
}

/// The length of a set `[...]` if `c` is in it; `set` begins after the bracket.
fn set(set: &[char], c: char) -> Option<usize> {
    let end = set.iter().position(|x| *x == ']')?;
    let mut rest = &set[..end];
    while let Some((first, after)) = rest.split_first() {
        let (last, after) = match after {
            ['-', last, after @ ..] => (last, after),
            _ => (first, after),
        };
        if (*first..=*last).contains(&c) {
            return Some(end + 2);
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    #[test]
    fn a_counter_is_the_last_thing_in_a_name() {
        for (file, expected) in [
            ("goldsync-b-7.conf", Some(("goldsync-b-7", None))),
            ("goldsync-b-7+3.conf", Some(("goldsync-b-7", Some((3, 0))))),
            ("goldsync-b-7+2-1.conf", Some(("goldsync-b-7", Some((2, 1))))),
            ("GOLD+0-3.CONF", Some(("GOLD", Some((0, 3))))),
            ("a+1+2-3.conf", Some(("a+1", Some((2, 3))))),
            ("a+.conf", Some(("a+", None))),
            ("a+x.conf", Some(("a+x", None))),
            ("a++1.conf", Some(("a+", Some((1, 0))))),
            ("a+1-+2.conf", Some(("a+1-", Some((2, 0))))),
            ("a+99999999999.conf", Some(("a+99999999999", None))),
            (".conf", None),
            (".hidden.conf", None),
            ("auto-x.conf", None),
            ("a.conf.new", None),
            ("\u{e4}.conf", Some(("\u{e4}", None))),
            ("conf", None),
        ] {
            let expected = expected.map(|(stem, tries)| Name { stem: stem.into(), tries });
            assert_eq!(Name::read(file), expected, "{file}");
        }
    }

    #[test]
    fn a_text_is_read_line_by_line() {
        let text = "# title no\ntitle goldsync\nversion\t 7 \nsort-key goldsync\nlinux /a\n  efi   /b\ninitrd /c\ninitrd /d\nodd\n";
        let read = Text::read(text);
        assert_eq!((read.version.as_deref(), read.sort_key.as_deref()), (Some("7"), Some("goldsync")));
        assert_eq!((read.loaded.as_deref(), read.initrds), (Some("/b"), vec!["/c".to_owned(), "/d".to_owned()]));
        assert_eq!(Text::read(""), Text::default());
    }

    #[test]
    fn the_loaders_order_is_kept() {
        let entry = |file: &str, key: &str, version: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let text = Text { sort_key: some(key), version: some(version), ..Text::default() };
            (Name::read(file).unwrap(), text)
        };
        // Each comes before the next one.
        let sorted = [
            entry("z.conf", "a", "1"),
            entry("goldsync-b-12+1-2.conf", "goldsync", "12"),
            entry("goldsync-a-9.conf", "goldsync", "9"),
            entry("goldsync-a-3.conf", "goldsync", "3"),
            entry("goldsync-a.conf", "goldsync", ""),
            entry("zz-10.conf", "", "99"),
            entry("zz-9+2.conf", "", ""),
            entry("zz-9+1.conf", "", ""),
            entry("zz-9+1-1.conf", "", ""),
            entry("goldsync-b-99+0-3.conf", "a", "99"),
        ];
        for (at, pair) in sorted.windows(2).enumerate() {
            let ((a, a_text), (b, b_text)) = (&pair[0], &pair[1]);
            assert_eq!(order((a, a_text), (b, b_text)), Ordering::Less, "{at}");
            assert_eq!(order((b, b_text), (a, a_text)), Ordering::Greater, "{at}");
        }
    }

    #[test]
    fn versions_are_compared_as_the_format_says() {
        let sorted = ["", "~1", "a", "1~rc1", "1", "1-a", "1^post", "1.a", "1.1", "1.02", "1.10", "2"];
        // `~1` is older than nothing at all.
        assert_eq!(versions("~1", ""), Ordering::Less);
        for (at, a) in sorted.iter().enumerate().skip(2) {
            for b in &sorted[at + 1..] {
                assert_eq!((versions(a, b), versions(b, a)), (Ordering::Less, Ordering::Greater), "{a} {b}");
            }
        }
        for (a, b) in [("007", "7"), ("a_", "a"), ("", "__")] {
            assert_eq!(versions(a, b), Ordering::Equal, "{a} {b}");
        }
    }

    #[test]
    fn patterns_are_those_of_the_shell() {
        for (pattern, name, expected) in [
            ("goldsync-*", "goldsync-b-7.conf", true),
            ("GOLDsync-*", "goldsync-b-7.conf", true),
            ("goldsync-b-7", "goldsync-b-7.conf", false),
            ("*.conf", "x.conf", true),
            ("a*b*c", "aXbXbYc", true),
            ("a*b*c", "aXbXbY", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[", "[", false),
            ("\\*", "*", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_written_as_it_was_read(file in "[a-z0-9+.-]{0,20}(\\.conf)?") {
            if let Some(name) = Name::read(&file) {
                prop_assert_eq!(Name::read(&name.file()), Some(name));
            }
        }

        #[test]
        fn versions_are_ordered_one_way(a in "[0-9a-bA~.^_-]{0,6}", b in "[0-9a-bA~.^_-]{0,6}", c in "[0-9a-bA~.^_-]{0,6}") {
            prop_assert_eq!(versions(&a, &b), versions(&b, &a).reverse());
            if versions(&a, &b).is_le() && versions(&b, &c).is_le() {
                prop_assert!(versions(&a, &c).is_le(), "{} {} {}", a, b, c);
            }
        }

        #[test]
        fn a_star_takes_what_is_between(head in "[a-z]{0,5}", middle in ".{0,9}", tail in "[a-z]{0,5}") {
            let (pattern, name) = (format!("{head}*{tail}"), format!("{head}{middle}{tail}"));
            prop_assert!(matches(&pattern, &name));
        }
    }

    #[test]
    fn systemd_orders_versions_alike() {
        // Each pair is a process: few, but one for every rule.
        let words = ["1", "1.01", "1~a", "1-a", "1^a", "1.a", "ab", "A", "10"];
        for (a, b) in words.iter().enumerate().flat_map(|(at, a)| words[at..].iter().map(move |b| (*a, *b))) {
            let Ok(said) = Command::new("systemd-analyze").args(["compare-versions", a, b]).output() else {
                eprintln!("skipped: systemd-analyze is not installed");
                return;
            };
            let said = String::from_utf8(said.stdout).unwrap();
            let expected = match versions(a, b) {
                Ordering::Less => "<",
                Ordering::Equal => "==",
                Ordering::Greater => ">",
            };
            assert_eq!(said.trim(), format!("{a} {expected} {b}"));
        }
    }
}
