//! Signals by the names that the CRI and images give them.
//!
//! The CRI's enum counts alphabetically, the kernel does not; a table stands between, so that neither the numbering nor
//! a renaming of the enum's keys (Kubernetes 1.37 put `SIGNAL_` before them) can reach a kill(2).
//! Numbers are those of x86-64 and arm64; real-time signals count from 34, because the C library keeps 32 and 33.

use corten_proto::cri::Signal;

use super::SpecError;

/// First real-time signal programs may use.
const RTMIN: i32 = 34;
/// Last signal of the kernel.
const RTMAX: i32 = 64;
/// What stops a container that names no signal.
pub const DEFAULT: i32 = nix::libc::SIGTERM;

/// Names after `SIG` and their numbers, aliases after the name the kernel prefers.
const NAMES: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The signal that stops a container: the request's, else the image's, else SIGTERM.
pub fn effective(requested: i32, image: Option<&str>) -> Result<i32, SpecError> {
    let signal = Signal::try_from(requested)
        .map_err(|_unknown| SpecError::invalid("stop_signal", requested, "must be a value of the enum Signal"))?;
    if let Some(number) = number(signal) {
        return Ok(number);
    }
    let Some(name) = image.filter(|name| !name.is_empty()) else {
        return Ok(DEFAULT);
    };
    parse(name)
        .ok_or_else(|| SpecError::invalid("image config.StopSignal", name, "must name a signal or be its number"))
}

/// The kernel's number for the CRI's signal; none for RUNTIME_DEFAULT.
pub fn number(signal: Signal) -> Option<i32> {
    if signal == Signal::RuntimeDefault {
        return None;
    }
    let name = signal.as_str_name();
    parse(name.strip_prefix("SIGNAL_").unwrap_or(name))
}

/// The CRI's value for a kernel number, for ContainerStatus.
pub fn to_cri(number: i32) -> Signal {
    cri_signals()
        .find(|&signal| self::number(signal) == Some(number))
        .unwrap_or(Signal::RuntimeDefault)
}

/// A signal as images name it: `TERM`, `SIGTERM`, `15`, `SIGRTMIN+3`, in any case.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(RTMIN, offset, &["+", "PLUS"], 1);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(RTMAX, offset, &["-", "MINUS"], -1);
    }
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|&(_, number)| number)
}

/// `base`, moved by the number after one of `signs`, if that is still a real-time signal.
fn real_time(base: i32, offset: &str, signs: &[&str], direction: i32) -> Option<i32> {
    if offset.is_empty() {
        return Some(base);
    }
    let digits = signs.iter().find_map(|sign| offset.strip_prefix(sign))?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let steps: i32 = digits.parse().ok()?;
    let number = base.checked_add(direction.checked_mul(steps)?)?;
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// Every value of the CRI's enum; its numbers are dense from 0.
fn cri_signals() -> impl Iterator<Item = Signal> {
    (0..=i32::from(u8::MAX)).map_while(|value| Signal::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_name_signals_in_many_ways() {
        for (text, expected) in [
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigterm", Some(15)),
            ("15", Some(15)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMAX", Some(64)),
            ("64", Some(64)),
            ("65", None),
            ("0", None),
            ("-1", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN+-1", None),
            ("SIGRTMIN++1", None),
            ("SIGRTMINPLUS", None),
            ("SIGNONE", None),
            ("", None),
            ("15 ", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn every_cri_signal_has_its_kernel_number() {
        let signals: Vec<Signal> = cri_signals().collect();
        assert_eq!(signals.len(), 66);
        assert_eq!(number(Signal::RuntimeDefault), None);
        for &signal in &signals[1..] {
            assert!(number(signal).is_some(), "{}", signal.as_str_name());
        }
        for (signal, expected) in [
            (Signal::Sigabrt, nix::libc::SIGABRT),
            (Signal::Sigcld, nix::libc::SIGCHLD),
            (Signal::Sigpoll, nix::libc::SIGIO),
            (Signal::Sigterm, nix::libc::SIGTERM),
            (Signal::Sigwinch, nix::libc::SIGWINCH),
            (Signal::Sigrtminplus15, 49),
            (Signal::Sigrtmaxminus14, 50),
            (Signal::Sigrtmax, 64),
        ] {
            assert_eq!(number(signal), Some(expected), "{}", signal.as_str_name());
            assert_eq!(number(to_cri(expected)), Some(expected));
        }
    }

    #[test]
    fn the_request_goes_before_the_image() {
        let usr1 = Signal::Sigusr1.into();
        assert_eq!(effective(usr1, Some("SIGQUIT")), Ok(10));
        assert_eq!(effective(0, Some("SIGQUIT")), Ok(3));
        assert_eq!(effective(0, Some("")), Ok(15));
        assert_eq!(effective(0, None), Ok(15));
        assert!(effective(0, Some("NOPE")).unwrap_err().to_string().contains("NOPE"));
        assert!(effective(1000, None).is_err());
    }

    /// The numbers on the wire are the alphabet's, not the kernel's.
    #[test]
    fn numbers_of_the_wire() {
        for (wire, kernel) in [(1, 6), (4, 17), (8, 1), (10, 2), (13, 9), (17, 30)] {
            assert_eq!(effective(wire, None), Ok(kernel), "{wire}");
        }
    }
}
