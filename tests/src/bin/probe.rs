//! The program the tests run inside containers: as entrypoint, through exec, as a hook. It says what it sees.
//!
//! `probe report [PATH..]` prints one JSON document: its process, credentials, limits, namespaces, mounts and open
//! files, and for each PATH what it is and whether it can be read and written. Everything comes from `/proc`, so that
//! what is printed is the kernel's answer and not a runtime's or a libc's; where `/proc` is not mounted the field is
//! null. The other commands behave in one way a test asks for (exit with a code, wait for a signal, ...).
//!
//! It is linked statically and needs nothing from the root filesystem it runs in. It depends on no other module of
//! this crate: what it prints is a format, read again by `corten_tests::bundle::Report`.
//!
//! A command that fails prints one line on stderr and exits with 1; a command it does not know exits with 2.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<ExitCode> {
    match words {
        ["report", paths @ ..] => say(&report(paths).to_string())?,
        ["exit", code] => {
            return Ok(ExitCode::from(code.parse::<u8>().context("exit: not a code")?));
        }
        ["say", text @ ..] => say(&text.join(" "))?,
        ["sleep", ..] => sleep_for_ever(),
        ["spin"] => spin(),
        ["notify", message] => notify(message)?,
        ["under-root"] => under_root()?,
        ["signal-wait"] => signal_wait()?,
        ["write", path, text] => fs::write(path, text).with_context(|| format!("write {path}"))?,
        ["cat"] => copy(&mut io::stdin().lock())?,
        ["cat", path] => copy(&mut File::open(path).with_context(|| format!("open {path}"))?)?,
        ["errors", text] => eprintln!("{text}"),
        ["orphan"] => orphan()?,
        ["orphan-parent"] => {
            itself("sleep")?;
        }
        ["spawn", count] => spawn(count.parse().context("spawn: not a count")?)?,
        ["allocate", mib] => allocate(mib.parse().context("allocate: not a number of MiB")?)?,
        ["snoop", seconds] => say(&snoop(seconds.parse().context("snoop: not a number of seconds")?)?.to_string())?,
        ["count", path] => count(path)?,
        ["swrk", "3"] => fake_criu()?,
        ["hook", path, label] => hook(path, label)?,
        ["connect", path, kind, text] => connect(path, kind, text)?,
        ["exchange", one, other] => exchange(one, other)?,
        ["devices", directory] => say(&devices(directory).to_string())?,
        _ => {
            eprintln!("probe: unknown command {words:?}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn say(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("write to stdout")
}

fn sleep_for_ever() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// Says this on the socket of `NOTIFY_SOCKET`, and sleeps.
fn notify(message: &str) -> Result<()> {
    let path = std::env::var("NOTIFY_SOCKET").context("NOTIFY_SOCKET")?;
    let socket = std::os::unix::net::UnixDatagram::unbound().context("make a socket")?;
    let sent = socket.send_to(message.as_bytes(), &path);
    sent.with_context(|| format!("send to {path}"))?;
    sleep_for_ever()
}

/// Connects to a unix socket, of packets or of bytes, sends this and says how much came back at first.
fn connect(path: &str, kind: &str, text: &str) -> Result<()> {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
    let kind = if kind == "packets" {
        SockType::SeqPacket
    } else {
        SockType::Stream
    };
    let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).context("socket")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let mut answer = [0; 64];
    let talked = connect(fd, &UnixAddr::new(path)?)
        .and_then(|()| send(fd, text.as_bytes(), MsgFlags::MSG_NOSIGNAL))
        .and_then(|_sent| recv(fd, &mut answer, MsgFlags::empty()));
    say(&match talked {
        Ok(bytes) => format!("{bytes} bytes"),
        Err(errno) => errno.to_string(),
    })
}

/// Takes the root away, enters the mount namespace anew, and says how many entries /proc and /sys have there.
fn under_root() -> Result<()> {
    use nix::mount::{MntFlags, umount2};
    let namespace = File::open("/proc/self/ns/mnt").context("open the mount namespace")?;
    umount2("/", MntFlags::MNT_DETACH).context("umount /")?;
    nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNS).context("setns")?;
    for name in ["proc", "sys"] {
        say(&format!("{name}:{}", names_in(&format!("/{name}")).len()))?;
    }
    Ok(())
}

/// Uses the processor without end.
fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// Blocks every signal, says `ready`, and prints the name of the first that comes, SIGURG aside. A blocked signal reaches
/// even the init of a pid namespace, which the kernel shields from signals it has no handler for.
fn signal_wait() -> Result<()> {
    let all = SigSet::all();
    all.thread_block().context("block all signals")?;
    say("ready")?;
    // runc passes on the SIGURG with which Go's scheduler interrupts runc's own threads.
    let mut awaited = all;
    awaited.remove(Signal::SIGURG);
    let signal = awaited.wait().context("sigwait")?;
    say(signal.as_str())
}

fn copy(from: &mut impl Read) -> Result<()> {
    io::copy(from, &mut io::stdout()).context("copy to stdout")?;
    Ok(())
}

/// Starts this program again, with no stdin, as a child nobody waits for.
fn itself(command: &str) -> Result<()> {
    Command::new("/proc/self/exe")
        .arg(command)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {command}"))?;
    Ok(())
}

/// Leaves a sleeping grandchild whose parent has gone, then sleeps itself.
fn orphan() -> Result<()> {
    let parent = Command::new("/proc/self/exe")
        .arg("orphan-parent")
        .status()
        .context("start orphan-parent")?;
    if !parent.success() {
        bail!("orphan-parent: {parent}");
    }
    say("ready")?;
    sleep_for_ever()
}

/// Starts up to `count` sleeping children and prints how many the kernel allowed.
fn spawn(count: usize) -> Result<()> {
    let started = (0..count).take_while(|_| itself("sleep").is_ok()).count();
    say(&started.to_string())
}

/// Counts for ever, and writes to `path`, or to stdout where that is `-`, which process counts and how far it is. The
/// process is named by a number that only its memory holds.
fn count(path: &str) -> Result<()> {
    let name = u64::from_ne_bytes(random()?);
    for count in 1_u64.. {
        let line = format!("{name:x} {count}");
        match path {
            "-" => say(&line)?,
            // Whole lines only: a reader never sees a part of one.
            path => {
                let new = format!("{path}.new");
                fs::write(&new, line)
                    .and_then(|()| fs::rename(&new, path))
                    .with_context(|| format!("write {path}"))?;
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn random() -> Result<[u8; 8]> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(bytes)
}

/// In the place of CRIU: writes down beside itself what it was started with and what it is asked for, in hexadecimal
/// digits, and answers that it is version 4.1, or that it cannot; where there is a file beside it that says so, nothing.
fn fake_criu() -> Result<()> {
    let own = std::env::current_exe().context("find the program")?;
    let log = own.with_extension("log");
    let fds: Vec<String> = fs::read_dir("/proc/self/fd")
        .context("read /proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let mut request = vec![0; 64 << 10];
    let length = nix::sys::socket::recv(3, &mut request, nix::sys::socket::MsgFlags::empty()).context("recv")?;
    let hex: String = request[..length].iter().map(|byte| format!("{byte:02x}")).collect();
    let line = json!({
        "fds": fds.len() - 1, "env": environment, "cwd": std::env::current_dir().context("getcwd")?, "request": hex,
    });
    let mut log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&log)
        .context("open the log")?;
    writeln!(log, "{line}").context("write the log")?;
    if request[1] != 10 && own.with_extension("silent").exists() {
        std::thread::sleep(Duration::from_secs(1000));
    }
    // A question for the version is `type = 10` and no more; the answer: type 10, success, version { 4, 1 }.
    let version = [0x08, 10, 0x10, 1, 0x52, 4, 0x08, 4, 0x10, 1];
    let failure = [0x08, request[1], 0x10, 0];
    let answer: &[u8] = if request[1] == 10 { &version } else { &failure };
    nix::sys::socket::send(3, answer, nix::sys::socket::MsgFlags::empty()).context("send")?;
    Ok(())
}

/// Touches `mib` MiB of anonymous memory, one at a time.
fn allocate(mib: usize) -> Result<()> {
    let held: Vec<Vec<u8>> = (0..mib).map(|_| vec![1_u8; 1 << 20]).collect();
    say(&held.len().to_string())
}

/// For some seconds, or until SIGTERM, looks at every other process it can see, as fast as it can, and reports what it
/// got hold of: links to programs, programs it could open for writing, and links to open files.
fn snoop(seconds: u64) -> Result<Value> {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block().context("block SIGTERM")?;
    let terminated = SignalFd::with_flags(&term, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?;
    let own = std::process::id().to_string();
    let (mut programs, mut writable, mut files) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && terminated.read_signal().context("read the signalfd")?.is_none() {
        let others = names_in("/proc")
            .into_iter()
            .filter(|name| name.parse::<u32>().is_ok() && *name != own);
        for pid in others {
            let program = format!("/proc/{pid}/exe");
            programs.extend(link(&program));
            if OpenOptions::new().write(true).open(&program).is_ok() {
                writable.extend(link(&program));
            }
            let directory = format!("/proc/{pid}/fd");
            files.extend(
                names_in(&directory)
                    .iter()
                    .filter_map(|name| link(&format!("{directory}/{name}"))),
            );
        }
    }
    Ok(json!({ "programs": programs, "writable": writable, "files": files }))
}

/// Exchanges two names for ever, as fast as it can. One of them may be missing at times; somebody else works there too.
fn exchange(one: &str, other: &str) -> Result<()> {
    say("ready")?;
    loop {
        match renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) | Err(Errno::ENOENT | Errno::EBUSY) => {}
            Err(error) => return Err(error).with_context(|| format!("renameat2({one}, {other}, RENAME_EXCHANGE)")),
        }
    }
}

/// Makes a node of every major number in `directory` and opens it: the error of each, `null` for none.
fn devices(directory: &str) -> Value {
    let path = format!("{directory}/node");
    let mut outcomes = BTreeMap::new();
    for (letter, kind) in [("b", SFlag::S_IFBLK), ("c", SFlag::S_IFCHR)] {
        for number in 1..=255 {
            let made = mknod(path.as_str(), kind, Mode::S_IRUSR | Mode::S_IWUSR, makedev(number, 0));
            let opened = made.map_err(io::Error::from).and_then(|()| readable(&path, false));
            fs::remove_file(&path).ok();
            outcomes.insert(format!("{letter} {number}:0"), outcome(opened));
        }
    }
    json!(outcomes)
}

/// As a hook: appends one JSON line with the label, the state that stood on stdin, and what a hook process is given.
fn hook(path: &str, label: &str) -> Result<()> {
    let mut state = String::new();
    io::stdin()
        .read_to_string(&mut state)
        .context("read the state on stdin")?;
    let line = json!({
        "hook": label,
        "state": serde_json::from_str::<Value>(&state).unwrap_or(Value::Null),
        "args": std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "env": environment(),
        "cwd": link("/proc/self/cwd"),
        "fds": open_files(),
        "namespaces": namespaces(),
    });
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open {path}"))?;
    // One write: hooks of the container and of the host may append at the same time.
    log.write_all(format!("{line}\n").as_bytes())
        .with_context(|| format!("append to {path}"))
}

fn report(paths: &[&str]) -> Value {
    let stat = process_stat();
    json!({
        "pid": std::process::id(),
        "ppid": stat.as_ref().map(|stat| stat.parent),
        "process_group": stat.as_ref().map(|stat| stat.group),
        "session": stat.as_ref().map(|stat| stat.session),
        "scheduling": stat.as_ref().map(|stat| json!({
            "policy": stat.policy, "nice": stat.nice, "priority": stat.priority,
        })),
        "status": status(),
        "cwd": link("/proc/self/cwd"),
        "args": std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "env": environment(),
        "limits": limits(),
        "namespaces": namespaces(),
        "mounts": mounts(),
        "fds": open_files(),
        "hostname": line("/proc/sys/kernel/hostname"),
        "domainname": line("/proc/sys/kernel/domainname"),
        "init_executable": link("/proc/1/exe"),
        "executable": link("/proc/self/exe"),
        "oom_score_adj": line("/proc/self/oom_score_adj").and_then(|text| text.parse::<i32>().ok()),
        "uid_map": fields("/proc/self/uid_map"),
        "gid_map": fields("/proc/self/gid_map"),
        "cgroups": lines("/proc/self/cgroup"),
        "terminal": terminal(),
        "clocks": clocks(),
        "paths": paths.iter().map(|path| (*path, describe(path))).collect::<BTreeMap<_, _>>(),
    })
}

fn line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

fn lines(path: &str) -> Option<Vec<String>> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.lines().map(str::to_owned).collect())
}

fn fields(path: &str) -> Option<Vec<Vec<String>>> {
    let split = |line: &String| line.split_whitespace().map(str::to_owned).collect();
    lines(path).map(|lines| lines.iter().map(split).collect())
}

fn link(path: &str) -> Option<String> {
    fs::read_link(path)
        .ok()
        .map(|target| target.to_string_lossy().into_owned())
}

fn environment() -> Vec<String> {
    std::env::vars_os()
        .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
        .collect()
}

struct ProcessStat {
    parent: i32,
    group: i32,
    session: i32,
    nice: i32,
    /// Of the real-time policies.
    priority: i32,
    policy: i32,
}

fn process_stat() -> Option<ProcessStat> {
    let text = line("/proc/self/stat")?;
    // The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // By the numbers of proc_pid_stat(5), of which the third is the first here.
    let number = |field: usize| fields.get(field - 3)?.parse().ok();
    Some(ProcessStat {
        parent: number(4)?,
        group: number(5)?,
        session: number(6)?,
        nice: number(19)?,
        priority: number(40)?,
        policy: number(41)?,
    })
}

/// The lines of `/proc/self/status` a runtime has a say in, by the kernel's names.
fn status() -> BTreeMap<String, String> {
    const WANTED: [&str; 14] = [
        "Uid",
        "Gid",
        "Groups",
        "Umask",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
        "Cpus_allowed_list",
        "NSpid",
    ];
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| WANTED.contains(name))
        .map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

/// Soft and hard limit by the kernel's name, as `/proc/self/limits` prints them (a number or `unlimited`).
fn limits() -> BTreeMap<String, [String; 2]> {
    // "Max open files            1024                 4096                 files": the columns start at 26 and 47.
    let parse = |line: &str| {
        let (name, values) = line.split_at_checked(26)?;
        let mut values = values.split_whitespace();
        Some((
            name.trim().to_owned(),
            [values.next()?.to_owned(), values.next()?.to_owned()],
        ))
    };
    lines("/proc/self/limits")
        .unwrap_or_default()
        .iter()
        .skip(1)
        .filter_map(|line| parse(line))
        .collect()
}

fn namespaces() -> BTreeMap<String, Option<String>> {
    names_in("/proc/self/ns")
        .into_iter()
        .map(|name| (name.clone(), link(&format!("/proc/self/ns/{name}"))))
        .collect()
}

fn names_in(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The lines of mountinfo, in order. See proc_pid_mountinfo(5) for the fields.
fn mounts() -> Vec<Value> {
    lines("/proc/self/mountinfo")
        .unwrap_or_default()
        .iter()
        .filter_map(|line| mount(line))
        .collect()
}

fn mount(line: &str) -> Option<Value> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    Some(json!({
        "device": left.get(2)?,
        "root": unescape(left.get(3)?),
        "destination": unescape(left.get(4)?),
        "options": left.get(5)?.split(',').collect::<Vec<_>>(),
        "propagation": left.iter().skip(6).filter(|tag| !tag.is_empty()).collect::<Vec<_>>(),
        "type": right.first()?,
        "source": unescape(right.get(1)?),
        "data": right.get(2)?.split(',').collect::<Vec<_>>(),
    }))
}

/// The kernel writes space, tab, newline and backslash in paths as three octal digits.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// What each open file descriptor points to, without the one that listed them.
fn open_files() -> BTreeMap<u32, String> {
    names_in("/proc/self/fd")
        .into_iter()
        // The descriptor of the listing is closed by now, and its link gone.
        .filter_map(|name| Some((name.parse().ok()?, link(&format!("/proc/self/fd/{name}"))?)))
        .collect()
}

/// Seconds on the two clocks that a time namespace shifts.
fn clocks() -> Value {
    let seconds = |clock| rustix::time::clock_gettime(clock).tv_sec;
    json!({
        "monotonic": seconds(rustix::time::ClockId::Monotonic),
        "boottime": seconds(rustix::time::ClockId::Boottime),
    })
}

fn terminal() -> Value {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Value::Null;
    }
    let size = rustix::termios::tcgetwinsize(&stdin).ok();
    json!({ "rows": size.map(|size| size.ws_row), "columns": size.map(|size| size.ws_col) })
}

fn describe(path: &str) -> Value {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) => return json!({ "error": error.raw_os_error().map(errno_name) }),
    };
    let (kind, device) = kind(&meta);
    json!({
        "type": kind,
        "mode": format!("{:04o}", meta.mode() & 0o7777),
        "uid": meta.uid(),
        "gid": meta.gid(),
        "size": meta.size(),
        "device": device,
        "target": link(path),
        "entries": meta.is_dir().then(|| { let mut names = names_in(path); names.sort(); names }),
        "read": outcome(readable(path, meta.is_dir())),
        "write": outcome(writable(path, meta.is_dir())),
        "text": first_bytes(path, &meta),
    })
}

fn kind(meta: &fs::Metadata) -> (&'static str, Option<[u64; 2]>) {
    let numbers = [major(meta.rdev()), minor(meta.rdev())];
    let kind = meta.file_type();
    if kind.is_char_device() {
        ("character", Some(numbers))
    } else if kind.is_block_device() {
        ("block", Some(numbers))
    } else if kind.is_fifo() {
        ("fifo", None)
    } else if kind.is_socket() {
        ("socket", None)
    } else if kind.is_symlink() {
        ("symlink", None)
    } else if kind.is_dir() {
        ("directory", None)
    } else {
        ("file", None)
    }
}

/// `null` for success, else the errno's name: what a test compares.
fn outcome(result: io::Result<()>) -> Value {
    match result {
        Ok(()) => Value::Null,
        Err(error) => json!(error.raw_os_error().map(errno_name)),
    }
}

fn errno_name(errno: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno))
}

// Opening must neither hang (a fifo, a terminal) nor make a terminal ours.
const GENTLY: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

fn readable(path: &str, directory: bool) -> io::Result<()> {
    if directory {
        return fs::read_dir(path).map(drop);
    }
    OpenOptions::new().read(true).custom_flags(GENTLY).open(path).map(drop)
}

fn writable(path: &str, directory: bool) -> io::Result<()> {
    if !directory {
        return OpenOptions::new().write(true).custom_flags(GENTLY).open(path).map(drop);
    }
    let file = format!("{path}/.probe-{}", std::process::id());
    File::create(&file)?;
    fs::remove_file(&file)
}

fn first_bytes(path: &str, meta: &fs::Metadata) -> Option<String> {
    let mut bytes = Vec::new();
    if meta.is_file() {
        File::open(path).ok()?.take(256).read_to_end(&mut bytes).ok()?;
        return Some(std::ffi::OsStr::from_bytes(&bytes).to_string_lossy().into_owned());
    }
    None
}
