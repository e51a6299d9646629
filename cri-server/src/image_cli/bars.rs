//! Progress for a person: bars on a terminal, a line for every layer elsewhere. All of it goes to stderr.

use std::collections::{HashMap, HashSet};
use std::io::{IsTerminal, Write as _};

use corten_proto::images::{Layer, Progress};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Digits of a digest that a person is shown.
const DIGITS: usize = 12;

/// The progress of one call.
pub(super) enum Bars {
    /// A bar for what is sent, one for the layers and one for each of them.
    Terminal {
        screen: MultiProgress,
        total: Option<ProgressBar>,
        layers: HashMap<String, ProgressBar>,
    },
    /// The layers that were told of, and the stage that was last.
    Lines { told: HashSet<String>, stage: String },
}

impl Bars {
    pub(super) fn new() -> Bars {
        if std::io::stderr().is_terminal() {
            return Bars::Terminal {
                screen: MultiProgress::new(),
                total: None,
                layers: HashMap::new(),
            };
        }
        Bars::Lines {
            told: HashSet::new(),
            stage: String::new(),
        }
    }

    /// A bar for `length` bytes that are sent, 0 if their number is not known.
    pub(super) fn sending(&self, length: u64) -> ProgressBar {
        match self {
            Bars::Terminal { screen, .. } => screen.add(bar("sending", length)),
            Bars::Lines { .. } => ProgressBar::hidden(),
        }
    }

    /// Shows what has changed.
    pub(super) fn show(&mut self, progress: &Progress) {
        match self {
            Bars::Terminal { screen, total, layers } => {
                if progress.layers.is_empty() {
                    return;
                }
                let done = progress.layers.iter().filter(|layer| layer.done).count() as u64;
                let total = total.get_or_insert_with(|| screen.add(counter(progress.layers.len() as u64)));
                total.set_position(done);
                total.set_message(progress.stage.clone());
                for layer in &progress.layers {
                    let made = || screen.add(bar(short(&layer.digest), layer.size));
                    let bar = layers.entry(layer.digest.clone()).or_insert_with(made);
                    bar.set_position(shown(layer));
                }
            }
            Bars::Lines { told, stage } => {
                for line in lines(progress, told, stage) {
                    // Where stderr is closed there is nobody to be told.
                    drop(writeln!(std::io::stderr(), "{line}"));
                }
            }
        }
    }

    /// Leaves the terminal as it was.
    pub(super) fn clear(&mut self) {
        if let Bars::Terminal { screen, .. } = self {
            // A terminal that went away needs no clearing.
            drop(screen.clear());
            // Bars that are dropped later would be drawn once more.
            screen.set_draw_target(ProgressDrawTarget::hidden());
        }
    }
}

fn bar(label: &str, length: u64) -> ProgressBar {
    let template = "{prefix:12} [{bar:30}] {bytes:>11} of {total_bytes:11} {bytes_per_sec}";
    styled(ProgressBar::new(length), template).with_prefix(label.to_owned())
}

fn counter(length: u64) -> ProgressBar {
    styled(ProgressBar::new(length), "{pos} of {len} layers, {elapsed}, {msg}")
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("our own template is well formed");
    bar.with_style(style.progress_chars("=> "))
}

/// A layer that was here already has nothing to come.
fn shown(layer: &Layer) -> u64 {
    if layer.present { layer.size } else { layer.received }
}

/// The lines for what is new.
fn lines(progress: &Progress, told: &mut HashSet<String>, stage: &mut String) -> Vec<String> {
    let mut lines = Vec::new();
    let count = progress.layers.len();
    for layer in progress.layers.iter().filter(|layer| layer.done) {
        if !told.insert(layer.digest.clone()) {
            continue;
        }
        let what = match layer.present {
            true => "is here already".to_owned(),
            false => format!("done, {}", HumanBytes(layer.size)),
        };
        lines.push(format!(
            "layer {} {what} ({} of {count})",
            short(&layer.digest),
            told.len()
        ));
    }
    if !progress.stage.is_empty() && progress.stage != *stage {
        stage.clone_from(&progress.stage);
        lines.push(format!("stage: {stage}"));
    }
    lines
}

/// The beginning of a digest's digits.
pub(super) fn short(digest: &str) -> &str {
    let digits = digest.split_once(':').map_or(digest, |(_, digits)| digits);
    digits.get(..DIGITS).unwrap_or(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digest: &str, done: bool, received: u64) -> Layer {
        Layer {
            digest: digest.into(),
            size: 2048,
            received,
            done,
            present: done && received == 0,
        }
    }

    #[test]
    fn each_layer_and_stage_has_one_line() {
        let (mut told, mut stage) = (HashSet::new(), String::new());
        let mut lines = |stage_now: &str, layers: &[Layer]| {
            let progress = Progress {
                stage: stage_now.into(),
                layers: layers.to_vec(),
                done: Vec::new(),
            };
            lines(&progress, &mut told, &mut stage)
        };
        assert_eq!(lines("manifest", &[]), ["stage: manifest"]);
        let half = [layer("sha256:aa", false, 5), layer("sha256:bb", true, 0)];
        assert_eq!(
            lines("layers", &half),
            ["layer bb is here already (1 of 2)", "stage: layers"]
        );
        assert!(lines("layers", &half).is_empty());
        let whole = [layer("sha256:aa", true, 2048), layer("sha256:bb", true, 0)];
        assert_eq!(lines("layers", &whole), ["layer aa done, 2.00 KiB (2 of 2)"]);
    }

    #[test]
    fn digests_are_shortened() {
        let long = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(short(&long), "abababababab");
        assert_eq!(short("x"), "x");
    }
}
