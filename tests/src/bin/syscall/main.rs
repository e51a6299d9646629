//! The program the seccomp tests run inside containers: makes system calls by number and says what came of them.
//!
//! ```text
//! syscall call NR [ARG..] [, NR [ARG..]]..   natively; one line each: the result, or the errno's name
//! syscall i386 NR [ARG..]                    the same through the 32-bit entry (int 0x80); x86-64 only
//! syscall i386-socketcall CALL [ARG..]       socketcall(2) through it, the arguments in memory as it wants them
//! syscall thread NR                          in a second thread; then `survived`, if the first one has
//! syscall trap NR                            with a handler for SIGSYS, which says `trapped`
//! syscall expect NR ERRNO                    exits with 1 unless the call fails with this errno: for hooks
//! ```
//! It makes few other system calls, so that a profile can be narrow. Numbers are decimal or 0x hexadecimal.

mod sys;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("syscall: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["call", calls @ ..] => {
            for call in calls.split(|word| *word == ",") {
                let (number, args) = numbers(call)?;
                println!("{}", outcome(sys::native(number, args)));
            }
        }
        ["i386", call @ ..] => {
            let (number, args) = numbers(call)?;
            println!("{}", outcome(sys::i386(number, args)));
        }
        ["i386-socketcall", call @ ..] => {
            let (number, args) = numbers(call)?;
            println!("{}", outcome(sys::i386_socketcall(number, args)));
        }
        ["thread", number] => in_a_thread(parse(number)?)?,
        ["trap", number] => {
            sys::say_when_trapped().context("sigaction(SIGSYS)")?;
            println!("{}", outcome(sys::native(parse(number)?, [0; 6])));
        }
        ["expect", number, errno] => {
            let got = outcome(sys::native(parse(number)?, [0; 6]));
            if got != *errno {
                bail!("{number}: {got}, not {errno}");
            }
        }
        _ => bail!("unknown command {words:?}"),
    }
    Ok(())
}

/// A call's number and arguments.
fn numbers(words: &[&str]) -> Result<(u64, [u64; 6])> {
    let [number, rest @ ..] = words else { bail!("no number") };
    let mut args = [0; 6];
    for (arg, word) in args.iter_mut().zip(rest) {
        *arg = parse(word)?;
    }
    Ok((parse(number)?, args))
}

fn parse(word: &str) -> Result<u64> {
    let number = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    number.with_context(|| format!("{word:?} is not a number"))
}

fn outcome(result: i64) -> String {
    match i32::try_from(-result) {
        Ok(errno @ 1..=4095) => format!("{:?}", nix::errno::Errno::from_raw(errno)),
        _ => result.to_string(),
    }
}

/// Makes the call in another thread and waits for that thread's end, however it comes.
fn in_a_thread(number: u64) -> Result<()> {
    let _detached = thread::spawn(move || sys::native(number, [0; 6]));
    for _ in 0..2000 {
        thread::sleep(Duration::from_millis(2));
        let threads = std::fs::read_dir("/proc/self/task").context("read /proc/self/task")?;
        if threads.count() == 1 {
            println!("survived");
            return Ok(());
        }
    }
    bail!("the other thread does not end")
}
