//! The call that attaches a client to a container's standard IO.
//!
//! Output is copied to the client's pipes (`audience.rs`). Input does not pass the shim: the client gets the terminal's
//! master, or the writing end of standard input.

use std::os::fd::OwnedFd;

use corten_proto::shim::error::Code;
use corten_proto::shim::{self, reply};

use crate::audience::{MAX_PIPES, check_pipe};
use crate::container::State;
use crate::events::Requester;
use crate::io::NoInput;
use crate::log::Stream;
use crate::service::{Answer, Service, error, failed, invalid, wrong_state};

impl Service {
    /// Attach: everything is checked before anything is changed, for the descriptors are gone with the packet.
    pub(crate) fn attach(&mut self, from: Requester, request: &shim::Attach, fds: Vec<OwnedFd>) -> Answer {
        let streams = [(request.stdout, Stream::Stdout), (request.stderr, Stream::Stderr)];
        let streams = streams
            .into_iter()
            .filter_map(|(asked, stream)| asked.then_some(stream));
        let streams: Vec<Stream> = streams.collect();
        if streams.len() != fds.len() {
            let text = format!("{} descriptors: attach takes one for each output asked for", fds.len());
            return Err(error(Code::Invalid, text));
        }
        fds.iter().try_for_each(check_pipe).map_err(invalid)?;
        let (id, container) = self.container(&request.id)?;
        if !matches!(container.state, State::Created { .. } | State::Running { .. }) {
            return Err(wrong_state("attach to", &id, &container.state));
        }
        let io = &mut container.io;
        let terminal = io.has_terminal();
        if terminal && request.stderr {
            let text = format!("attach to container {id}: stderr: it has a terminal, whose one output is stdout");
            return Err(error(Code::Invalid, text));
        }
        if io.audience.count() + fds.len() > MAX_PIPES {
            let text = format!("attach to container {id}: {MAX_PIPES} outputs are attached to already");
            return Err(error(Code::Failed, text));
        }
        let fd = io.input(request.stdin).map_err(|cause| {
            let code = match cause {
                NoInput::Closed => Code::Invalid,
                NoInput::Given => Code::WrongState,
                NoInput::Failed(_) => Code::Failed,
            };
            error(code, format!("attach to container {id}: stdin: {cause}"))
        })?;
        let container = self.containers.get_mut(&id).expect("it was found above");
        let pipes = streams.into_iter().zip(fds);
        if let Err(cause) = container.io.audience.add_all(&id, pipes, &mut self.poll) {
            container.io.take_back(fd);
            return Err(failed(cause));
        }
        let attached = reply::Result::Attached(shim::Attached { terminal });
        self.clients.reply_with(from, Ok(attached), fd, &mut self.poll);
        Ok(None)
    }
}
