//! `corten-cri network`: the built-in network, from the command line.
//!
//! `show` and `repair` ask the running server, which has the pods' records. `remove` does so too; where no server answers, it
//! looks at the bridge itself and takes it away if nothing is connected to it.

use std::io::Write as _;

use anyhow::{Context, Result, anyhow, bail};
use clap::Subcommand;
use corten_proto::networks::networks_client::NetworksClient;
use corten_proto::networks::{RemoveRequest, RepairRequest, ShowRequest, Shown};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use crate::config::Config;
use crate::image_cli::Output;
use crate::network::builtin;

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum NetworkCommand {
    /// Shows bridge, subnets, addresses by pod, host ports, and what of others drops the pods' packets
    Show {
        /// Form of the result
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Has the kernel match the records: pods get back what they have lost, what no pod has is removed
    Repair,
    /// Takes the bridge and the packet filter's table away
    Remove {
        /// Also while pods use them: they lose their network
        #[arg(long)]
        force: bool,
    },
}

/// Runs a command against the server of a configuration.
///
/// # Errors
/// Whatever the server answers, or that it does not.
pub fn run(config: &Config, command: NetworkCommand) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the async runtime")?.block_on(async {
        match (connect(config).await, command) {
            (Ok(server), NetworkCommand::Show { output }) => show(server, output).await,
            (Ok(server), NetworkCommand::Repair) => repair(server).await,
            (Ok(server), NetworkCommand::Remove { force }) => remove(server, force).await,
            (Err(_no_server), NetworkCommand::Remove { force }) => {
                builtin::remove(&config.network.bridge, &config.root, force)
            }
            (Err(no_server), _) => Err(no_server),
        }
    })
}

async fn connect(config: &Config) -> Result<NetworksClient<Channel>> {
    let socket = config.listen.display();
    let endpoint = Endpoint::from_shared(format!("unix://{socket}"));
    let endpoint = endpoint.with_context(|| format!("{socket}: no address of a socket"))?;
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| anyhow!("no server answers at {socket}: {error}"))?;
    Ok(NetworksClient::new(channel))
}

async fn show(mut server: NetworksClient<Channel>, output: Output) -> Result<()> {
    let shown = server.show(ShowRequest {}).await.map_err(refused)?.into_inner();
    match output {
        Output::Json => print(&format!("{:#}\n", document(&shown))),
        Output::Table => print(&page(&shown)),
    }
}

async fn repair(mut server: NetworksClient<Channel>) -> Result<()> {
    let repaired = server.repair(RepairRequest {}).await.map_err(refused)?.into_inner();
    for link in &repaired.removed {
        print(&format!("removed {link}: no pod has it\n"))?;
    }
    for problem in &repaired.problems {
        print(&format!("error: {problem}\n"))?;
    }
    print(&format!("looked at {} pods\n", repaired.pods))?;
    match repaired.problems.len() {
        0 => Ok(()),
        problems => bail!("{problems} pods could not be put right"),
    }
}

async fn remove(mut server: NetworksClient<Channel>, force: bool) -> Result<()> {
    server.remove(RemoveRequest { force }).await.map_err(refused).map(drop)
}

/// For people.
fn page(shown: &Shown) -> String {
    let mut page = match shown.unused_because.as_str() {
        "" => "new pods get this network\n".to_owned(),
        why => format!("new pods do not get this network: {why}\n"),
    };
    let state = match (shown.mtu, shown.table) {
        (0, _) => "not made yet".to_owned(),
        (mtu, true) => format!("MTU {mtu}, with table inet {}", shown.bridge),
        (mtu, false) => format!("MTU {mtu}, without its table: see repair"),
    };
    page += &format!("bridge {}: {state}\n", shown.bridge);
    page += &format!("subnets of new pods: {}\n", shown.subnets.join(", "));
    for pod in &shown.pods {
        let link = if pod.link.is_empty() {
            "no link: see repair"
        } else {
            &pod.link
        };
        page += &format!("pod {} {} {link} {}\n", pod.addresses.join(" "), pod.name, pod.sandbox);
    }
    for port in &shown.ports {
        page += &format!(
            "port {} {} to {} {}\n",
            port.protocol, port.listen, port.target, port.pod
        );
    }
    for chain in &shown.dropping_chains {
        page += &format!("warning: chain {chain} drops what is forwarded and not accepted there\n");
    }
    page
}

fn document(shown: &Shown) -> Value {
    let pods = shown
        .pods
        .iter()
        .map(|pod| json!({ "name": pod.name, "sandbox": pod.sandbox, "addresses": pod.addresses, "link": pod.link }));
    let ports = shown.ports.iter().map(
        |port| json!({ "protocol": port.protocol, "listen": port.listen, "target": port.target, "pod": port.pod }),
    );
    json!({
        "unusedBecause": shown.unused_because,
        "bridge": shown.bridge,
        "mtu": shown.mtu,
        "subnets": shown.subnets,
        "table": shown.table,
        "pods": pods.collect::<Vec<_>>(),
        "ports": ports.collect::<Vec<_>>(),
        "droppingChains": shown.dropping_chains,
    })
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("print")
}

/// The server's answer, without the decoration of gRPC.
#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}

#[cfg(test)]
mod tests {
    use corten_proto::networks::{Pod, Port};

    use super::*;

    #[test]
    fn a_page_tells_what_to_do() {
        let mut shown = Shown {
            bridge: "corten0".to_owned(),
            subnets: vec!["10.87.0.0/16".to_owned()],
            ..Shown::default()
        };
        assert!(page(&shown).contains("bridge corten0: not made yet\n"));
        shown.mtu = 1500;
        shown.pods.push(Pod {
            name: "default/a".to_owned(),
            sandbox: "0123".to_owned(),
            addresses: vec!["10.87.0.2/16".to_owned()],
            link: String::new(),
        });
        shown.ports.push(Port {
            protocol: "TCP".to_owned(),
            listen: "0.0.0.0:80".to_owned(),
            target: "10.87.0.2:8080".to_owned(),
            pod: "default/a".to_owned(),
        });
        shown.dropping_chains.push("ip filter FORWARD".to_owned());
        shown.unused_because = "there is a CNI configuration".to_owned();
        let page = page(&shown);
        for line in [
            "new pods do not get this network: there is a CNI configuration",
            "bridge corten0: MTU 1500, without its table: see repair",
            "pod 10.87.0.2/16 default/a no link: see repair 0123",
            "port TCP 0.0.0.0:80 to 10.87.0.2:8080 default/a",
            "warning: chain ip filter FORWARD drops what is forwarded and not accepted there",
        ] {
            assert!(page.lines().any(|it| it == line), "{line}: {page}");
        }
    }
}
