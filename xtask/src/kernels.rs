//! `cargo xtask kernels`: compiles every CUDA kernel ahead of time, with the compiler of NVIDIA's
//! packages on PyPI, and holds what it reports against a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ds4_cuda::kernels::{Unit, flash_units, sources};

/// All of one version: left to itself, pip mixes compilers whose languages differ.
const WHEELS: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];
/// What a release holds machine code for, and one form that later devices compile themselves.
const RELEASE: &[&str] = &[
    "sm_80",
    "sm_86",
    "sm_89",
    "sm_90a",
    "sm_100a",
    "sm_120a",
    "sm_121a",
    "compute_80",
];
/// What the check compiles everything for.
const CHECKED: &[&str] = &["sm_80", "sm_90a"];
/// What it compiles one unit for.
const GLIMPSED: &[&str] = &["sm_89", "sm_100a", "sm_120a"];

/// What the assembler said of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Report {
    registers: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

impl Report {
    /// Memory of a thread beside its registers: none, unless the table says so.
    fn local_bytes(&self) -> u32 {
        self.stack_bytes + self.spill_bytes
    }
}

pub(crate) const USAGE: &str = "\
       cargo xtask kernels [--check | --registers] [--arch NAME]... [--out FOLDER]
                            compile the CUDA kernels: into FOLDER (default: target/cubins), from
                            where DS4_CUDA_CUBINS=FOLDER puts them into a program; --check fails on
                            local memory and on registers beyond kernels/registers.tsv, and skips
                            where the compiler cannot be had; --registers writes that table";

pub(crate) fn run(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let root = crate::root();
    let (mut check, mut write) = (false, false);
    let mut archs: Vec<String> = Vec::new();
    let mut out = root.join("target/cubins");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--check" => check = true,
            "--registers" => write = true,
            "--arch" => archs.push(args.next().ok_or("--arch needs a name")?),
            "--out" => out = args.next().ok_or("--out needs a folder")?.into(),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    let nvcc = match compiler(&root) {
        Ok(nvcc) => nvcc,
        Err(reason) if check => {
            println!("skipped: the CUDA compiler cannot be had from PyPI ({reason})");
            return Ok(());
        }
        Err(reason) => return Err(reason),
    };
    let folder = root.join("target/cuda-kernels");
    write_sources(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    std::fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;

    let table = root.join("backends/cuda/kernels/registers.tsv");
    let mut jobs: Vec<(Unit, &str)> = Vec::new();
    for unit in flash_units() {
        let default = if check || write { CHECKED } else { RELEASE };
        match archs.is_empty() {
            true => jobs.extend(default.iter().map(|arch| (unit.clone(), *arch))),
            false => jobs.extend(archs.iter().map(|arch| (unit.clone(), arch.as_str()))),
        }
    }
    if check {
        let first = flash_units().remove(0);
        jobs.extend(GLIMPSED.iter().map(|arch| (first.clone(), *arch)));
    }
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let failures = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<(), String> {
                    while let Some((unit, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if !unit.runs_on(arch) {
                            continue;
                        }
                        let reports = compile(&nvcc, &folder, &out, unit, arch)?;
                        let mut found = found.lock().expect("no worker panics");
                        for (kernel, report) in reports {
                            found.insert((unit.name(), kernel, (*arch).to_owned()), report);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let ends = workers
            .into_iter()
            .map(|w| w.join().expect("no worker panics"));
        ends.filter_map(Result::err).collect::<Vec<_>>()
    });
    if !failures.is_empty() {
        return Err(failures.join("\n"));
    }
    let found = found.into_inner().expect("no worker panics");
    println!("{} kernels compiled into {}", found.len(), out.display());
    if write {
        let mut text = String::from("unit\tkernel\tarchitecture\tregisters\tlocal bytes\n");
        for ((unit, kernel, arch), report) in &found {
            let (registers, local) = (report.registers, report.local_bytes());
            writeln!(text, "{unit}\t{kernel}\t{arch}\t{registers}\t{local}").expect("it grows");
        }
        return std::fs::write(&table, text).map_err(|e| format!("{}: {e}", table.display()));
    }
    if check {
        let text =
            std::fs::read_to_string(&table).map_err(|e| format!("{}: {e}", table.display()))?;
        return beyond(&text, &found);
    }
    Ok(())
}

/// Compares registers with the table: a kernel that is not in it, or takes more, fails.
fn beyond(table: &str, found: &BTreeMap<(String, String, String), Report>) -> Result<(), String> {
    let limits: BTreeMap<(&str, &str, &str), (u32, u32)> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let name = (fields.next()?, fields.next()?, fields.next()?);
            let registers = fields.next()?.parse().ok()?;
            Some((name, (registers, fields.next()?.parse().ok()?)))
        })
        .collect();
    let wrong: Vec<String> = found
        .iter()
        .filter(|((_, _, arch), _)| CHECKED.contains(&arch.as_str()))
        .filter_map(|((unit, kernel, arch), report)| {
            let limit = limits.get(&(unit.as_str(), kernel.as_str(), arch.as_str()));
            match limit {
                Some((registers, local))
                    if report.registers <= *registers && report.local_bytes() <= *local =>
                {
                    None
                }
                Some((registers, local)) => Some(format!(
                    "{kernel} ({unit}, {arch}): {} registers and {} bytes of local memory, the table has {registers} and {local}",
                    report.registers,
                    report.local_bytes()
                )),
                None => Some(format!("{kernel} ({unit}, {arch}) is not in the table")),
            }
        })
        .collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "{}\n`cargo xtask kernels --registers` writes the table anew",
            wrong.join("\n")
        ))
    }
}

/// The compiler, installed into `target` when it is not there.
fn compiler(root: &Path) -> Result<PathBuf, String> {
    let folder = root.join("target/cuda-compiler");
    let nvcc = folder.join("nvidia/cu13/bin/nvcc");
    if nvcc.is_file() {
        return Ok(nvcc);
    }
    let installed = Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .args(["--no-deps", "--target"])
        .arg(&folder)
        .args(WHEELS)
        .output()
        .map_err(|e| format!("python3: {e}"))?;
    if nvcc.is_file() {
        return Ok(nvcc);
    }
    let error = String::from_utf8_lossy(&installed.stderr);
    Err(error.lines().last().unwrap_or("pip failed").to_owned())
}

fn write_sources(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (name, text) in sources() {
        // The two headers that stand in for a system's are for NVRTC only.
        if !name.starts_with("std") {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().expect("in the folder"))?;
            std::fs::write(path, text)?;
        }
    }
    Ok(())
}

fn compile(
    nvcc: &Path,
    folder: &Path,
    out: &Path,
    unit: &Unit,
    arch: &str,
) -> Result<Vec<(String, Report)>, String> {
    let file = out.join(format!("{}.cubin", unit.key(arch)));
    let part = file.with_extension("part");
    let is_ptx = arch.starts_with("compute_");
    let mut command = Command::new(nvcc);
    command
        .arg(if is_ptx { "-ptx" } else { "-cubin" })
        .arg(format!("-arch={arch}"))
        .args(["-std=c++17", "-Xptxas", "-v", "-I"])
        .arg(folder)
        .args(
            unit.defines
                .iter()
                .map(|(name, value)| format!("-D{name}={value}")),
        )
        .arg("-o")
        .arg(&part)
        .arg(folder.join(unit.file));
    let done = command.output().map_err(|e| format!("nvcc: {e}"))?;
    let said = String::from_utf8_lossy(&done.stderr) + String::from_utf8_lossy(&done.stdout);
    if !done.status.success() {
        return Err(format!("{} for {arch}:\n{said}", unit.name()));
    }
    if is_ptx {
        // The driver takes PTX as a string that ends with a zero.
        let mut text = std::fs::read(&part).map_err(|e| format!("{}: {e}", part.display()))?;
        text.push(0);
        std::fs::write(&part, text).map_err(|e| format!("{}: {e}", part.display()))?;
    }
    std::fs::rename(&part, &file).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(reports(&said))
}

/// The assembler's report: for each kernel a line with its name, one with stack and spills, one with
/// registers.
fn reports(said: &str) -> Vec<(String, Report)> {
    let number_before = |line: &str, word: &str| -> u32 {
        let at = line.find(word).unwrap_or(0);
        let digits = line[..at]
            .trim_end()
            .rsplit(|c: char| !c.is_ascii_digit())
            .next();
        digits.and_then(|d| d.parse().ok()).unwrap_or(0)
    };
    let mut all: Vec<(String, Report)> = Vec::new();
    let mut name = String::new();
    let mut report = Report::default();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Function properties for ") {
            name = rest.trim().to_owned();
        } else if line.contains("bytes stack frame") {
            report.stack_bytes = number_before(line, " bytes stack frame");
            report.spill_bytes = number_before(line, " bytes spill stores")
                + number_before(line, " bytes spill loads");
        } else if line.contains(" registers") && !name.is_empty() {
            report.registers = number_before(line, " registers");
            all.push((std::mem::take(&mut name), std::mem::take(&mut report)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_registers_stack_and_spills_of_every_kernel() {
        let said = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_80'
ptxas info    : Function properties for a
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 42 registers, used 1 barriers, 128 bytes smem
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 7 registers, used 0 barriers
";
        let report = |registers, stack_bytes, spill_bytes| Report {
            registers,
            stack_bytes,
            spill_bytes,
        };
        assert_eq!(
            reports(said),
            [
                ("a".to_owned(), report(42, 16, 12)),
                ("b".to_owned(), report(7, 0, 0))
            ]
        );
    }

    #[test]
    fn a_kernel_beyond_the_table_or_not_in_it_fails() {
        let found = |registers| {
            let name = ["u", "k", "sm_80"].map(str::to_owned);
            let [unit, kernel, arch] = name;
            BTreeMap::from([(
                (unit, kernel, arch),
                Report {
                    registers,
                    ..Report::default()
                },
            )])
        };
        let table = "unit\tkernel\tarchitecture\tregisters\tlocal bytes\nu\tk\tsm_80\t40\t0\n";
        assert_eq!(beyond(table, &found(40)), Ok(()));
        assert!(
            beyond(table, &found(41))
                .unwrap_err()
                .contains("41 registers")
        );
        assert!(
            beyond("", &found(40))
                .unwrap_err()
                .contains("not in the table")
        );
    }
}
