//! remove, check and prune.

use anyhow::{Result, bail};
use corten_proto::cri::RemoveImageRequest;
use corten_proto::images::{CheckRequest, PruneRequest};
use indicatif::DecimalBytes;
use serde_json::json;

use super::show::{print_json, spec};
use super::{Output, Prune, Server, print, refused};

impl Server {
    pub(super) async fn remove(mut self, images: Vec<String>) -> Result<()> {
        for name in images {
            let request = RemoveImageRequest {
                image: Some(spec(name.clone())),
            };
            self.cri.remove_image(request).await.map_err(refused)?;
            print(&format!("{name}\n"))?;
        }
        Ok(())
    }

    pub(super) async fn check(mut self, output: Output) -> Result<()> {
        let report = self.images.check(CheckRequest {}).await.map_err(refused)?.into_inner();
        let errors = report.findings.iter().filter(|finding| finding.is_error).count();
        if output == Output::Json {
            let findings = report
                .findings
                .iter()
                .map(|finding| json!({ "error": finding.is_error, "subject": finding.subject, "text": finding.text }));
            print_json(&json!({
                "images": report.images, "layers": report.layers, "bytes": report.bytes, "inodes": report.inodes,
                "findings": findings.collect::<Vec<_>>(),
            }))?;
        } else {
            for finding in &report.findings {
                let kind = if finding.is_error { "error" } else { "note" };
                print(&format!("{kind}: {}: {}\n", finding.subject, finding.text))?;
            }
            print(&format!(
                "{} images, {} layers, {} in {} inodes\n",
                report.images,
                report.layers,
                DecimalBytes(report.bytes),
                report.inodes
            ))?;
        }
        match errors {
            0 => Ok(()),
            1 => bail!("1 error"),
            errors => bail!("{errors} errors"),
        }
    }

    pub(super) async fn prune(mut self, prune: Prune) -> Result<()> {
        let request = PruneRequest {
            all: prune.all,
            dry_run: prune.dry_run,
        };
        let pruned = self.images.prune(request).await.map_err(refused)?.into_inner();
        for image in &pruned.removed {
            let name = image.names.first().map_or("", String::as_str);
            print(format!("{} {name}", image.id).trim_end())?;
            print("\n")?;
        }
        if !prune.dry_run {
            print(&format!("freed {}\n", DecimalBytes(pruned.freed)))?;
        }
        Ok(())
    }
}
