//! Flags that other programs have: they mean something here, are of no effect, or are answered by
//! what to say instead.

use crate::args::{BackendArg, EngineArgs};

/// The backend of the arguments, by whichever name. Apple's devices are driven through WebGPU.
pub(crate) fn backend(args: &EngineArgs) -> BackendArg {
    let others = &args.others;
    if others.cpu {
        BackendArg::Cpu
    } else if others.cuda {
        BackendArg::Cuda
    } else if others.metal {
        BackendArg::Wgpu
    } else {
        args.backend
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
    fn a_backend_by_another_name_is_that_backend() {
        for (flags, expected) in [
            ("--cpu", BackendArg::Cpu),
            ("--cuda", BackendArg::Cuda),
            ("--metal", BackendArg::Wgpu),
            ("--backend metal", BackendArg::Wgpu),
            ("--backend vulkan", BackendArg::Wgpu),
            ("--backend reference", BackendArg::Reference),
            ("-t 2", BackendArg::Auto),
        ] {
            assert_eq!(backend(&engine(flags)), expected, "{flags}");
        }
    }

    #[test]
    fn a_flag_without_effect_is_said_to_be() {
        assert_eq!(without_effect(&engine("--cpu")), None);
        let said = without_effect(&engine("--n-gpu-layers -1 --mtp f")).expect("words");
        assert!(said.contains("-ngl") && said.contains("--mtp"), "{said}");
    }
}
