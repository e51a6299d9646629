//! The blkio controller of v1 and the io controller of v2.
//!
//! Proportional weights are BFQ's: the scheduler that had v1's plain `blkio.weight` left in Linux 5.0, and its leaf weights
//! with it. v2 has weights of its own beside BFQ's (`io.weight`, Linux 5.4), which serve where BFQ is not there.

use anyhow::{Result, ensure};
use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice, LinuxWeightDevice};

use super::{Absent, Writes, set};

pub(super) fn check(block_io: &LinuxBlockIo) -> Result<()> {
    check_weights("", set(block_io.weight()), set(block_io.leaf_weight()))?;
    for device in block_io.weight_device().iter().flatten() {
        let at = "weightDevice.";
        check_number(at, device.major(), device.minor())?;
        check_weights(at, set(device.weight()), set(device.leaf_weight()))?;
    }
    for (field, _, _, devices) in throttles(block_io) {
        for device in devices {
            check_number(field, device.major(), device.minor())?;
        }
    }
    Ok(())
}

fn check_weights(at: &str, weight: Option<u16>, leaf_weight: Option<u16>) -> Result<()> {
    if let Some(weight) = weight {
        ensure!(
            (10..=1000).contains(&weight),
            "linux.resources.blockIO.{at}weight: {weight}: must be 10 to 1000"
        );
    }
    if let Some(weight) = leaf_weight {
        anyhow::bail!("linux.resources.blockIO.{at}leafWeight: {weight}: Linux has no leaf weights since 5.0");
    }
    Ok(())
}

fn check_number(at: &str, major: i64, minor: i64) -> Result<()> {
    // How the kernel divides a device number, MINORBITS.
    ensure!(
        (0..1 << 12).contains(&major) && (0..1 << 20).contains(&minor),
        "linux.resources.blockIO.{at}: {major}:{minor}: not the number of a device"
    );
    Ok(())
}

pub(super) fn v1(writes: &mut Writes, block_io: &LinuxBlockIo) {
    if let Some(weight) = set(block_io.weight()) {
        writes.push("blockIO.weight", "blkio.bfq.weight", weight);
    }
    for (device, weight) in device_weights(block_io) {
        let value = format!("{}:{} {weight}", device.major(), device.minor());
        writes.push("blockIO.weightDevice", "blkio.bfq.weight_device", value);
    }
    for (field, file, _, devices) in throttles(block_io) {
        for device in devices {
            // 0 takes the limit away.
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            writes.push(field, file, value);
        }
    }
}

pub(super) fn v2(writes: &mut Writes, block_io: &LinuxBlockIo) {
    if let Some(weight) = set(block_io.weight()) {
        let instead = Absent::Instead("io.weight", io_weight(weight).to_string());
        writes.push_or("blockIO.weight", "io.bfq.weight", weight, instead);
    }
    for (device, weight) in device_weights(block_io) {
        let value = |weight: u32| format!("{}:{} {weight}", device.major(), device.minor());
        let instead = Absent::Instead("io.weight", value(io_weight(weight)));
        writes.push_or("blockIO.weightDevice", "io.bfq.weight", value(weight.into()), instead);
    }
    for (field, _, key, devices) in throttles(block_io) {
        for device in devices {
            let rate = set(Some(device.rate())).map_or_else(|| "max".to_owned(), |rate| rate.to_string());
            let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
            writes.push(field, "io.max", value);
        }
    }
}

fn device_weights(block_io: &LinuxBlockIo) -> impl Iterator<Item = (&LinuxWeightDevice, u16)> {
    let devices = block_io.weight_device().iter().flatten();
    devices.filter_map(|device| Some((device, set(device.weight())?)))
}

/// The spec's weight (10 to 1000) as one of io.weight (1 to 10000), linear, as runc and crun have it.
fn io_weight(weight: u16) -> u32 {
    1 + (u32::from(weight) - 10) * 9999 / 990
}

/// Field, file of v1, key in v2's io.max, devices.
type Throttle<'a> = (&'static str, &'static str, &'static str, &'a [LinuxThrottleDevice]);

fn throttles(block_io: &LinuxBlockIo) -> [Throttle<'_>; 4] {
    [
        (
            "blockIO.throttleReadBpsDevice",
            "blkio.throttle.read_bps_device",
            "rbps",
            block_io.throttle_read_bps_device(),
        ),
        (
            "blockIO.throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            "wbps",
            block_io.throttle_write_bps_device(),
        ),
        (
            "blockIO.throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            "riops",
            block_io.throttle_read_iops_device(),
        ),
        (
            "blockIO.throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            "wiops",
            block_io.throttle_write_iops_device(),
        ),
    ]
    .map(|(field, file, key, list)| (field, file, key, list.as_deref().unwrap_or_default()))
}
