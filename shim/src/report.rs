//! What the shim has to say that answers no request: one line each on its stderr, which is the sandbox's `shim.log`.

/// Writes one line to stderr.
///
/// Not `eprintln!`, which panics where stderr cannot be written: a full disk must not end a pod's supervisor.
macro_rules! report {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let line = format!("corten-shim: {}\n", format_args!($($text)*));
        std::io::stderr().write_all(line.as_bytes()).unwrap_or_default();
    }};
}
pub(crate) use report;
