//! Exec, Attach, PortForward: checks, and a URL at which the streaming server does the work.

use std::sync::Arc;

use corten_proto::cri::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest, PortForwardResponse,
};

use crate::container::{Container, Status};
use crate::error::Error;
use crate::node::Node;
use crate::streaming::{Session, Wanted};

impl Node {
    /// Exec.
    pub(super) fn stream_exec(&self, request: ExecRequest) -> Result<ExecResponse, Error> {
        let wanted = Wanted {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        check(wanted)?;
        let container = self.exec_target(&request.container_id, &request.cmd)?;
        let session = Session::Exec {
            container: container.id().to_string(),
            cmd: request.cmd,
            wanted,
        };
        let url = self.tokens.issue(session)?;
        Ok(ExecResponse { url })
    }

    /// Attach.
    pub(super) fn stream_attach(&self, request: AttachRequest) -> Result<AttachResponse, Error> {
        let wanted = Wanted {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        check(wanted)?;
        let container = self.attach_target(&request.container_id)?;
        let config = &container.metadata.config;
        if wanted.stdin && !config.stdin && !config.tty {
            let rule = "must be false: the container was created without standard input";
            return Err(Error::invalid("stdin", true, rule));
        }
        let session = Session::Attach {
            container: container.id().to_string(),
            wanted,
        };
        let url = self.tokens.issue(session)?;
        Ok(AttachResponse { url })
    }

    /// PortForward.
    pub(super) fn stream_port_forward(&self, request: PortForwardRequest) -> Result<PortForwardResponse, Error> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if sandbox.pid().is_none() {
            let state = sandbox.status().state().as_str_name();
            return Err(Error::State(format!("port-forward to {}: it is {state}", sandbox.id())));
        }
        let ports = request.port.iter().map(|&port| match u16::try_from(port) {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(Error::invalid("port", port, "must be 1 to 65535")),
        });
        let session = Session::PortForward {
            sandbox: sandbox.id().to_string(),
            ports: ports.collect::<Result<_, _>>()?,
        };
        let url = self.tokens.issue(session)?;
        Ok(PortForwardResponse { url })
    }

    /// The container of a request to attach, which must run.
    pub(crate) fn attach_target(&self, id: &str) -> Result<Arc<Container>, Error> {
        let container = self.container(id)?;
        if !matches!(container.status(), Status::Running { .. }) {
            let state = container.status().state().as_str_name();
            return Err(Error::State(format!("attach to {}: it is {state}", container.id())));
        }
        Ok(container)
    }
}

/// What CRI demands of the streams.
fn check(wanted: Wanted) -> Result<(), Error> {
    if wanted.tty && wanted.stderr {
        let rule = "must be false with tty: a terminal has one output";
        return Err(Error::invalid("stderr", true, rule));
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        let rule = "one of stdin, stdout and stderr must be true";
        return Err(Error::invalid("stdout", false, rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_can_be_asked_for() {
        let of = |[stdin, stdout, stderr, tty]: [u8; 4]| Wanted {
            stdin: stdin == 1,
            stdout: stdout == 1,
            stderr: stderr == 1,
            tty: tty == 1,
        };
        let table = [
            ([1, 0, 0, 0], None),
            ([0, 0, 1, 0], None),
            ([1, 1, 1, 0], None),
            ([1, 1, 0, 1], None),
            ([0, 0, 0, 0], Some("stdout")),
            ([0, 0, 0, 1], Some("stdout")),
            ([1, 1, 1, 1], Some("stderr")),
        ];
        for (streams, field) in table {
            let found = check(of(streams)).map_err(|error| error.to_string());
            match field {
                None => assert!(found.is_ok(), "{streams:?}: {found:?}"),
                Some(field) => assert!(found.unwrap_err().starts_with(field), "{streams:?}"),
            }
        }
    }
}
