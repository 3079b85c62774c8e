//! Flags that other programs have: they mean something here, are of no effect, or are answered by
//! what to say instead.

use anyhow::{Result, bail};
use clap::ValueEnum as _;

use crate::args::{BackendArg, EngineArgs};

/// The backend of the arguments, by whichever name.
///
/// # Errors
/// This build has no such backend.
pub(crate) fn backend(args: &EngineArgs) -> Result<BackendArg> {
    let others = &args.others;
    let (flag, name, feature) = if others.cpu {
        ("--cpu", "cpu", "")
    } else if others.cuda {
        ("--cuda", "cuda", "cuda")
    } else if others.metal {
        // Apple's devices are driven through WebGPU.
        ("--metal", "wgpu", "wgpu")
    } else {
        return Ok(args.backend);
    };
    match BackendArg::from_str(name, false) {
        Ok(backend) => Ok(backend),
        Err(_) => bail!(
            "{flag} stands for --backend {name}, and this build has no such backend: build it \
             with --features {feature}, or leave {flag} out to compute on the processor"
        ),
    }
}

/// What is to be said of flags that change nothing; `None` when there are none.
pub(crate) fn without_effect(args: &EngineArgs) -> Option<String> {
    let others = &args.others;
    let mut said = Vec::new();
    if others.n_gpu_layers.is_some() {
        said.push("-ngl is without effect: --backend says what computes, and takes all layers");
    }
    if others.mtp.is_some() {
        said.push("--mtp is without effect: this build drafts no tokens ahead");
    }
    (!said.is_empty()).then(|| said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser as _;

    fn engine(line: &str) -> EngineArgs {
        let words = ["ds4", "-p", "x"].into_iter().chain(line.split(' '));
        Cli::try_parse_from(words).expect("flags").ask.engine
    }

    #[test]
    fn a_backend_by_another_name_is_that_backend_or_an_error_that_says_what_to_do() {
        assert_eq!(backend(&engine("--cpu")).unwrap(), BackendArg::Cpu);
        assert_eq!(
            backend(&engine("--backend reference")).unwrap(),
            BackendArg::Reference
        );
        for (flag, name) in [("--cuda", "cuda"), ("--metal", "wgpu")] {
            match (backend(&engine(flag)), BackendArg::from_str(name, false)) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(_)) => {
                    let error = error.to_string();
                    assert!(
                        error.contains(flag) && error.contains("--features"),
                        "{error}"
                    );
                }
                (found, _) => panic!("{flag}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_flag_without_effect_is_said_to_be() {
        assert_eq!(without_effect(&engine("--cpu")), None);
        let said = without_effect(&engine("--n-gpu-layers -1 --mtp f")).expect("words");
        assert!(said.contains("-ngl") && said.contains("--mtp"), "{said}");
    }
}
