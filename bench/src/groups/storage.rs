// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real images through the example driver: cold reads from slow storage, against `qemu-img bench`,
//! and warm reads from the page cache, against a bare `pread`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::Samples;
use crate::programs::{self, output};
use crate::progress;

/// Requests in flight during the cold reads.
const DEPTH: &str = "16";
/// The driver's cold reads must be this many times as fast as those of `qemu-img bench`.
const COLD_FASTER: f64 = 6.0;
/// A warm read may take this many times the time of a bare `pread`.
const WARM: f64 = 1.15;
const L2_CACHE: u64 = 256 << 10;
const L2_ENTRY: u64 = 4 << 10;
/// The cold image: its L2 tables (8 MiB) are 32 times the cache.
const COLD_BYTES: u64 = 64 << 30;
const WARM_BYTES: u64 = 1 << 30;

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let driver = setting
        .driver
        .as_deref()
        .ok_or("storage: needs --driver, the path of qcow2drv")?;
    let scratch = setting.out.join("scratch");
    std::fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    let result = cold(setting, report, driver, &scratch)
        .and_then(|()| warm(setting, report, driver, &scratch));
    let _ = std::fs::remove_dir_all(&scratch);
    result
}

/// An NBD server. It is ended when dropped.
struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    /// Serves `image`. Each read takes 1 ms.
    fn start(image: &Path, socket: PathBuf) -> Result<Self, String> {
        let process = Command::new("nbdkit")
            .args(["-f", "-U"])
            .arg(&socket)
            .args(["--filter=delay", "file"])
            .arg(image)
            .arg("rdelay=1ms")
            .spawn()
            .map_err(|e| format!("nbdkit: {e}"))?;
        let server = Self { process, socket };
        let begun = Instant::now();
        while !server.socket.exists() {
            if begun.elapsed() > Duration::from_secs(10) {
                return Err("nbdkit did not begin to listen within 10 s".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn cold(
    setting: &Setting,
    report: &mut Report,
    driver: &Path,
    scratch: &Path,
) -> Result<(), String> {
    progress::show("storage: cold image");
    let image = scratch.join("cold.qcow2");
    output(
        Command::new("qemu-img")
            .args([
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                "preallocation=metadata",
            ])
            .arg(&image)
            .arg(COLD_BYTES.to_string()),
    )?;
    let server = Server::start(&image, scratch.join("nbd.sock"))?;
    let socket = server.socket.display().to_string();
    let (mut ours, mut qemu) = (Samples::default(), Samples::default());
    for round in 0..setting.effort.rounds.min(5) {
        progress::show(&format!("storage: cold reads, round {}", round + 1));
        let uri = format!("nbd+unix:///?socket={socket}");
        let cache = format!("l2-cache-size={L2_CACHE},l2-cache-entry-size={L2_ENTRY}");
        let text = output(
            Command::new(driver)
                .args(["bench", "--threads", DEPTH, "--seconds", "3", "-o", &cache])
                .args(["--seed", &(round + 1).to_string(), &uri]),
        )?;
        ours.push(field(&text, "requests_per_second")?, false);
        let options = format!(
            "driver=qcow2,l2-cache-size={L2_CACHE},l2-cache-entry-size={L2_ENTRY},\
             file.driver=nbd,file.server.type=unix,file.server.path={socket}"
        );
        // The stride is 37 slices and a block, so that each request needs another slice than those
        // before it.
        let stride = 37 * (L2_ENTRY / 8 * 65536) + 4096;
        let rate = qemu_img_bench(&["--image-opts", &options], 2500, DEPTH, stride)?;
        qemu.push(rate, false);
    }
    report.info("storage.cold.driver", "req/s", &ours);
    report.info("storage.cold.qemu_img_bench", "req/s", &qemu);
    report.figure(
        "storage.cold.driver_vs_qemu_img",
        "x",
        Target::AtLeast(COLD_FASTER),
        ours.over(&qemu),
    );
    Ok(())
}

/// Requests per second of `qemu-img bench` with `count` reads of 4 KiB.
fn qemu_img_bench(image: &[&str], count: u64, depth: &str, stride: u64) -> Result<f64, String> {
    let text = output(
        Command::new("qemu-img")
            .args(["bench", "-c", &count.to_string(), "-d", depth, "-s", "4096"])
            .args(["-S", &stride.to_string()])
            .args(image),
    )?;
    let seconds = text
        .split("completed in ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok())
        .ok_or("qemu-img bench: printed no time")?;
    Ok(count as f64 / seconds)
}

/// The number that `qcow2drv bench` prints as `name`.
fn field(text: &str, name: &str) -> Result<f64, String> {
    programs::field("qcow2drv bench", text, name)
}

fn warm(
    setting: &Setting,
    report: &mut Report,
    driver: &Path,
    scratch: &Path,
) -> Result<(), String> {
    progress::show("storage: warm image");
    let (raw, image) = (scratch.join("warm.raw"), scratch.join("warm.qcow2"));
    fill(&raw)?;
    output(
        Command::new("qemu-img")
            .args(["convert", "-O", "qcow2"])
            .arg(&raw)
            .arg(&image),
    )?;
    std::fs::remove_file(&raw).map_err(|e| format!("{}: {e}", raw.display()))?;
    for threads in ["1", "2"] {
        let (mut ours, mut bare) = (Samples::default(), Samples::default());
        for round in 0..setting.effort.rounds.min(7) {
            progress::show(&format!(
                "storage: warm reads, {threads} threads, round {}",
                round + 1
            ));
            let measure = |extra: &[&str]| {
                let text = output(
                    Command::new(driver)
                        .args(["bench", "--warm", "--threads", threads, "--seconds", "1"])
                        .args(extra)
                        .arg(&image),
                )?;
                field(&text, "latency_ns")
            };
            ours.push(measure(&[])?, false);
            bare.push(measure(&["--bare"])?, false);
        }
        report.info(format!("storage.warm.{threads}.driver"), "ns", &ours);
        report.info(format!("storage.warm.{threads}.bare_pread"), "ns", &bare);
        report.figure(
            format!("storage.warm.{threads}.driver_vs_bare"),
            "x",
            Target::AtMost(WARM),
            ours.over(&bare),
        );
    }
    let name = image.display().to_string();
    for depth in ["1", "16"] {
        progress::show(&format!("storage: qemu-img bench at depth {depth}"));
        let mut ns = Samples::default();
        for _ in 0..setting.effort.rounds.min(3) {
            // The stride and the number of blocks have no common factor, so that the reads go all
            // over the image.
            let rate = qemu_img_bench(&["-f", "qcow2", &name], 50_000, depth, 97_583 * 4096)?;
            ns.push(1e9 / rate, false);
        }
        report.info(
            format!("storage.warm.qemu_img_bench.depth_{depth}"),
            "ns",
            &ns,
        );
    }
    Ok(())
}

/// Writes a file of [`WARM_BYTES`] without zeros, so that the image gets no holes.
fn fill(path: &Path) -> Result<(), String> {
    use std::io::Write;
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = std::fs::File::create(path).map_err(fail)?;
    let mut chunk = vec![0_u8; 1 << 20];
    for number in 0..WARM_BYTES >> 20 {
        for (i, byte) in chunk.iter_mut().enumerate() {
            *byte = (i as u64 ^ i as u64 >> 8 ^ number) as u8 | 1;
        }
        file.write_all(&chunk).map_err(fail)?;
    }
    Ok(())
}
