// SPDX-License-Identifier: MIT OR Apache-2.0
//! The benchmarks of libqcow2cache. `--help` and bench/README.md say how to run them,
//! docs/performance.md what they found.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Value, json};

use figure::{Point, Report};
use groups::{Group, Setting};
use measure::{Effort, process_cpu};

mod ffi;
mod figure;
mod groups;
mod image_state;
mod machine;
mod measure;
mod ours;
mod plots;
mod policies;
mod programs;
mod progress;
mod work;
mod workloads;

const MISSED: u8 = 1;
const USAGE: u8 = 2;
const FAILED: u8 = 3;

/// Command line.
struct Args {
    quick: bool,
    /// Runs this one group in this process. The process that runs all groups passes it on.
    within: Option<String>,
    groups: Vec<String>,
    setting: Setting,
}

fn help() -> String {
    let mut text = String::from(
        "usage: qcow2cache-bench [OPTION…] [GROUP…]
Measures libqcow2cache through its C ABI, side by side with contenders, each
group in a separate process. Prints lines 'name value unit target verdict'.
The verdict is ok, MISS, noisy (the machine was too busy to judge) or info (no
target). Exit status: 0, 1 after a MISS, 2 for a wrong command line, 3 if
something failed.

groups (* is run by --quick):
",
    );
    for group in groups::ALL {
        let mark = if group.core { '*' } else { ' ' };
        text += &format!("  {mark} {:<11}{}\n", group.name, group.about);
    }
    text += "
options:
  --quick                 the core ratios alone, in less than a minute
  --out DIR               where results.json and the plots go (target/bench)
  --driver PATH           the example driver's command, for group storage
  --trace FILE            recorded table offsets, for group eviction
  --coroutine-stop PATH   the C program that times stops on a coroutine host,
                          for group lifecycle
  --coroutine-waiters PATH
                          the C program that times gets that wait, for group
                          waiters
  --changes N             option changes in a row, in group lifecycle (1000000)
  --help

examples:
  scripts/bench --quick
  scripts/bench hit miss
  scripts/bench lifecycle --changes 20000
";
    text
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
    let mut args = Args {
        quick: false,
        within: None,
        groups: Vec::new(),
        setting: Setting {
            effort: Effort::FULL,
            out: PathBuf::from("target/bench"),
            driver: None,
            trace: None,
            coroutine_stop: None,
            coroutine_waiters: None,
            changes: 1_000_000,
        },
    };
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .ok_or(format!("{word} needs a value; see --help"))
        };
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--quick" => {
                args.quick = true;
                args.setting.effort = Effort::QUICK;
            }
            "--out" => args.setting.out = value()?.into(),
            "--driver" => args.setting.driver = Some(value()?.into()),
            "--trace" => args.setting.trace = Some(value()?.into()),
            "--coroutine-stop" => args.setting.coroutine_stop = Some(value()?.into()),
            "--coroutine-waiters" => args.setting.coroutine_waiters = Some(value()?.into()),
            "--changes" => {
                let text = value()?;
                let number = text
                    .parse()
                    .map_err(|_| format!("--changes: '{text}' is not a number"))?;
                args.setting.changes = number;
            }
            "--within" => args.within = Some(value()?),
            name if groups::ALL.iter().any(|group| group.name == name) => {
                args.groups.push(word.clone());
            }
            _ => return Err(format!("unknown option or group '{word}'; see --help")),
        }
    }
    Ok(Some(args))
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match parse(words.iter().cloned()) {
        Ok(None) => {
            print!("{}", help());
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("qcow2cache-bench: {message}");
            return ExitCode::from(USAGE);
        }
        Ok(Some(args)) => match &args.within {
            Some(name) => run_group(find(name), &args.setting),
            None => run_all(&args, &words),
        },
    };
    match result {
        Ok(missed) => ExitCode::from(if missed { MISSED } else { 0 }),
        Err(message) => {
            progress::clear();
            eprintln!("qcow2cache-bench: {message}");
            ExitCode::from(FAILED)
        }
    }
}

fn find(name: &str) -> &'static Group {
    let found = groups::ALL.iter().find(|group| group.name == name);
    found.expect("the name was checked, or comes from the list")
}

fn group_file(out: &Path, name: &str) -> PathBuf {
    out.join("groups").join(format!("{name}.json"))
}

fn write(path: &Path, value: &Value) -> Result<(), String> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|e| format!("{}: {e}", path.display()))
}

/// Runs one group in this process and writes its result to the group's file.
fn run_group(group: &Group, setting: &Setting) -> Result<bool, String> {
    let mut report = Report::default();
    // Has to be read before a thread is pinned, and is kept.
    work::cpus();
    (group.run)(setting, &mut report)?;
    write(&group_file(&setting.out, group.name), &report.to_json())?;
    Ok(false)
}

/// Runs the chosen groups, one process after the other, and combines their results.
fn run_all(args: &Args, words: &[String]) -> Result<bool, String> {
    let out = &args.setting.out;
    let directory = out.join("groups");
    std::fs::create_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    let chosen: Vec<&Group> = groups::ALL
        .iter()
        .filter(|group| match args.groups.is_empty() {
            true => group.core || !args.quick,
            false => args.groups.iter().any(|name| name == group.name),
        })
        .collect();
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let options = words.iter().filter(|word| !args.groups.contains(word));
    let options: Vec<&String> = options.collect();
    let before = machine::Usage::now();
    let mut failed = Vec::new();
    for group in &chosen {
        let _ = std::fs::remove_file(group_file(out, group.name));
        let status = Command::new(&program)
            .args(&options)
            .args(["--within", group.name])
            .status()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        if !status.success() {
            failed.push(format!("{} ({status})", group.name));
        }
    }
    let mut machine = machine::describe();
    machine["others"] = json!(before.others_since());
    let missed = combine(out, &chosen, machine)?;
    if !failed.is_empty() {
        return Err(format!("these groups failed: {}", failed.join(", ")));
    }
    Ok(missed)
}

/// Combines the groups' files into results.json, draws the plots and prints a summary. Returns
/// whether a target was missed.
fn combine(out: &Path, chosen: &[&Group], machine: Value) -> Result<bool, String> {
    let mut points = Vec::new();
    let mut results = Vec::new();
    let mut counts = [("ok", 0), ("MISS", 0), ("noisy", 0)];
    let mut missed = Vec::new();
    for group in chosen {
        let Ok(text) = std::fs::read_to_string(group_file(out, group.name)) else {
            continue;
        };
        let value: Value =
            serde_json::from_str(&text).map_err(|e| format!("{}: {e}", group.name))?;
        for figure in value["figures"].as_array().into_iter().flatten() {
            for (verdict, count) in &mut counts {
                *count += usize::from(figure["verdict"] == **verdict);
            }
            if figure["verdict"] == "MISS" {
                missed.push(figure["name"].as_str().unwrap_or_default().to_owned());
            }
        }
        points.extend(
            value["points"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|p| Point {
                    chart: p["chart"].as_str().unwrap_or_default().into(),
                    line: p["line"].as_str().unwrap_or_default().into(),
                    x: p["x"].as_f64().unwrap_or_default(),
                    y: p["y"].as_f64().unwrap_or_default(),
                }),
        );
        results.push(json!({ "group": group.name, "result": value }));
    }
    plots::draw(&points, out)?;
    let others = machine["others"].as_f64().unwrap_or_default();
    write(
        &out.join("results.json"),
        &json!({ "machine": machine, "groups": results }),
    )?;
    let told = counts
        .map(|(verdict, count)| format!("{count} {verdict}"))
        .join(", ");
    println!(
        "\nfigures with a target: {told}; results and plots in {}",
        out.display()
    );
    if others > 0.05 {
        let percent = others * 100.0;
        println!(
            "the machine was not quiet: other processes used {percent:.0} % of one processor; \
             run it again when it is"
        );
    }
    for name in &missed {
        println!("MISS {name}");
    }
    Ok(!missed.is_empty())
}
