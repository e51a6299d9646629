//! `corten-shim` through its protocol, with real containers, under `corten` and under runc as the control.
//!
//! A file a feature. Every test has a shim of its own and ends with the check that nothing of it is left.

use std::path::PathBuf;

use corten_tests::leak::Watch;
use corten_tests::shim::{Client, Shim};

mod attach;
mod exec;
mod exit;
mod failure;
mod last_words;
mod lifecycle;
mod log_limit;
mod logs;
mod protocol;
mod terminal;

/// The OCI runtimes the shim is tested with.
fn runtimes() -> Vec<PathBuf> {
    let runc = ["/usr/sbin/runc", "/usr/bin/runc"].map(PathBuf::from);
    let runc = runc.into_iter().find(|path| path.exists());
    if runc.is_none() {
        eprintln!("skipped with runc: it is not installed");
    }
    [corten_tests::binary("corten")].into_iter().chain(runc).collect()
}

/// Runs a test with a new shim for each runtime, and a client that has subscribed; the test leaves no container.
fn with_shims(test: impl Fn(&Shim, &mut Client)) {
    with_lonely_shims(|shim| {
        let mut client = shim.connect();
        assert_eq!(client.subscribe(), []);
        test(shim, &mut client);
    });
}

/// The same without a client.
fn with_lonely_shims(test: impl Fn(&Shim)) {
    for runtime in runtimes() {
        eprintln!("with {}", runtime.display());
        let watch = Watch::new(Vec::<String>::new());
        let shim = Shim::start(&runtime);
        watch.also(shim.marker());
        test(&shim);
        assert_eq!(shim.log(), "", "the shim has nothing to complain about");
        shim.shut_down();
        watch.assert_clean();
    }
}
