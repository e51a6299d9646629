//! `corten-cri why`: why a container ended, from the command line.
//!
//! It asks the running server, and reads the records itself where none answers. What it prints is safe for a terminal.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use corten_proto::exits::WhyRequest;
use corten_proto::exits::exits_client::ExitsClient;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::config::Config;
use crate::paths::Paths;
use crate::why::report::{escaped, escaped_json, report};
use crate::why::{Death, find, subjects_on_disk};

/// How long the server may take, to be connected to and to answer: its records can be read without it.
const LIMIT: Duration = Duration::from_secs(5);

/// See [`run`].
#[derive(Args, Clone, Debug)]
pub struct Why {
    /// Its id or the beginning of one, or its name: NAME, POD/NAME or NAMESPACE/POD/NAME; of several by that name the one
    /// that ended last. Of those that were removed the last 256 are known
    container: String,
    /// Prints the whole record as JSON
    #[arg(long)]
    json: bool,
}

/// Prints why a container ended.
///
/// # Errors
/// Where there is no such container, or it has not ended.
pub fn run(config: &Config, why: &Why) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the async runtime")?;
    let death = match runtime.block_on(ask(&config.listen, &why.container, LIMIT)) {
        Ok(answer) => answer?,
        Err(silence) => {
            // For a person: what is printed below is as old as the server's last word.
            drop(writeln!(
                std::io::stderr(),
                "corten-cri: {silence:#}; reading its records"
            ));
            let paths = Paths::new(&config.root, &config.state);
            let subjects = subjects_on_disk(&paths)?;
            find(&paths, &why.container, subjects).map_err(|error| anyhow!("{}", escaped(&format!("{error:#}"))))?
        }
    };
    let text = match why.json {
        true => escaped_json(&serde_json::to_string_pretty(&death).context("encode the exit")?) + "\n",
        false => report(&death),
    };
    std::io::stdout().write_all(text.as_bytes()).context("print")
}

/// The server's answer; the outer error means that there is none.
async fn ask(socket: &Path, container: &str, limit: Duration) -> Result<Result<Death>> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let endpoint = endpoint.with_context(|| format!("{}: no address of a socket", socket.display()))?;
    let silence = || format!("no server answers at {}", socket.display());
    let connected = timeout(limit, endpoint.connect()).await.with_context(silence)?;
    let channel = connected.with_context(silence)?;
    let request = WhyRequest {
        container: container.to_owned(),
    };
    let mut client = ExitsClient::new(channel);
    match timeout(limit, client.why(request)).await.with_context(silence)? {
        Ok(response) => Ok(serde_json::from_str(&response.into_inner().document).context("decode the answer")),
        Err(status) if is_silence(status.code()) => Err(anyhow!("{}", escaped(status.message()))).with_context(silence),
        Err(status) => Ok(Err(anyhow!("{}", escaped(status.message())))),
    }
}

/// Whether an answer says that there is no server, or an older one, which does not know the call.
fn is_silence(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unimplemented | Code::DeadlineExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It takes connections, and never says a word.
    #[tokio::test]
    async fn a_server_that_hangs_is_a_silent_one() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("corten.sock");
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let silence = ask(&socket, "web", Duration::from_millis(50))
            .await
            .expect_err("no answer");
        assert!(format!("{silence:#}").contains("no server answers at"), "{silence:#}");
        for (code, expected) in [(Code::Unimplemented, true), (Code::NotFound, false)] {
            assert_eq!(is_silence(code), expected);
        }
    }
}
