use super::*;
use proptest::prelude::*;

/// What a device chooses from a row.
struct Chosen {
    ids: Vec<u32>,
    values: Vec<f32>,
    lse: [f32; 2],
}

impl Chosen {
    fn new(logits: &[f32], wanted: Wanted) -> Chosen {
        let Wanted::Candidates { temperature } = wanted else {
            panic!("{wanted:?}");
        };
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        keep_largest(&mut ids, N_CANDIDATES, |id| logits[id as usize]);
        let lse = [1.0, 1.0 / f64::from(temperature)].map(|scale| {
            let sum: f64 = logits.iter().map(|l| (f64::from(*l) * scale).exp()).sum();
            sum.ln() as f32
        });
        let values = ids.iter().map(|id| logits[*id as usize]).collect();
        Chosen { ids, values, lse }
    }

    fn candidates(&self) -> Candidates<'_> {
        Candidates {
            ids: &self.ids,
            values: &self.values,
            lse: self.lse[0],
            lse_at_temperature: self.lse[1],
        }
    }
}

/// Logits of the probabilities 0.5, 0.25, 0.15, 0.1 in the order of ids 3, 1, 0, 2.
fn logits() -> Vec<f32> {
    [0.15f32, 0.25, 0.1, 0.5].map(f32::ln).to_vec()
}

fn drawn(options: SamplingOptions) -> Vec<f64> {
    let n = 20_000;
    let mut counts = vec![0.0; 4];
    for seed in 0..n {
        let options = SamplingOptions {
            seed: Some(seed),
            ..options.clone()
        };
        counts[Sampler::new(options, &[]).sample(&logits()).unwrap() as usize] += 1.0 / n as f64;
    }
    counts
}

#[test]
fn filters_keep_what_they_say_and_renormalise() {
    let open = SamplingOptions {
        min_p: 0.0,
        ..SamplingOptions::default()
    };
    let cases = [
        ("no filter", open.clone(), [0.15, 0.25, 0.1, 0.5]),
        (
            "top_k 2",
            SamplingOptions {
                top_k: 2,
                ..open.clone()
            },
            [0.0, 1.0 / 3.0, 0.0, 2.0 / 3.0],
        ),
        (
            "top_p reached exactly",
            SamplingOptions {
                top_p: 0.5,
                ..open.clone()
            },
            [0.0, 0.0, 0.0, 1.0],
        ),
        (
            "top_p passed",
            SamplingOptions {
                top_p: 0.51,
                ..open.clone()
            },
            [0.0, 1.0 / 3.0, 0.0, 2.0 / 3.0],
        ),
        (
            "min_p 0.25",
            SamplingOptions {
                min_p: 0.25,
                ..open.clone()
            },
            [0.15 / 0.9, 0.25 / 0.9, 0.0, 0.5 / 0.9],
        ),
        (
            "top_p of top_k",
            SamplingOptions {
                top_k: 2,
                top_p: 0.6,
                ..open.clone()
            },
            [0.0, 0.0, 0.0, 1.0],
        ),
        (
            "a forbidden token",
            SamplingOptions {
                logit_bias: vec![(3, -100.0)],
                ..open.clone()
            },
            [0.3, 0.5, 0.2, 0.0],
        ),
    ];
    for (name, options, expected) in cases {
        for (id, (found, expected)) in drawn(options).iter().zip(expected).enumerate() {
            assert!(
                (found - expected).abs() < 0.015,
                "{name}: token {id} drawn {found}, expected {expected}"
            );
        }
    }
}

#[test]
fn temperature_zero_takes_the_lowest_of_the_largest() {
    let mut sampler = Sampler::new(SamplingOptions::greedy(), &[]);
    assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, 2.0]), Ok(1));
}

#[test]
fn penalties_count_what_was_generated_and_what_was_in_the_prompt() {
    let options = SamplingOptions {
        presence_penalty: 0.5,
        frequency_penalty: 0.4,
        ..SamplingOptions::greedy()
    };
    let mut sampler = Sampler::new(options, &[0]);
    let logits = [1.0, 0.5, -1.0];
    // Token 0 costs 0.9 once it was generated, and 0.4 more every time.
    assert_eq!(
        [
            sampler.sample(&logits),
            sampler.sample(&logits),
            sampler.sample(&logits)
        ],
        [Ok(0), Ok(1), Ok(0)]
    );

    let options = SamplingOptions {
        repetition_penalty: 3.0,
        ..SamplingOptions::greedy()
    };
    let mut sampler = Sampler::new(options, &[0]);
    assert_eq!(sampler.sample(&logits), Ok(1));
}

#[test]
fn options_out_of_range_are_named() {
    let with = |change: fn(&mut SamplingOptions)| {
        let mut options = SamplingOptions::default();
        change(&mut options);
        options.validate(10).map_err(|e| e.name)
    };
    assert_eq!(with(|_| {}), Ok(()));
    assert_eq!(with(|o| o.temperature = 2.1), Err("temperature"));
    assert_eq!(with(|o| o.temperature = f32::NAN), Err("temperature"));
    assert_eq!(with(|o| o.top_p = 0.0), Err("top_p"));
    assert_eq!(with(|o| o.min_p = -0.1), Err("min_p"));
    assert_eq!(
        with(|o| o.repetition_penalty = 0.0),
        Err("repetition_penalty")
    );
    assert_eq!(with(|o| o.logit_bias = vec![(10, 1.0)]), Err("logit_bias"));
}

#[test]
fn logprobs_are_those_of_the_unchanged_distribution() {
    let found = TokenLogprobs::new(&logits(), 0, 2);
    assert!((found.logprob - 0.15f32.ln()).abs() < 1e-6);
    assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [3, 1]);
    assert!((found.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
}

proptest! {
    #[test]
    fn the_same_seed_draws_the_same_tokens(seed: u64, values in prop::collection::vec(-20f32..20.0, 1..300)) {
        let options = SamplingOptions { seed: Some(seed), top_p: 0.9, top_k: 40, ..SamplingOptions::default() };
        let draw = || {
            let mut sampler = Sampler::new(options.clone(), &[]);
            (0..8).map(|_| sampler.sample(&values).unwrap()).collect::<Vec<_>>()
        };
        let first = draw();
        prop_assert_eq!(&first, &draw());
        prop_assert!(first.iter().all(|t| (*t as usize) < values.len()));
    }

    /// Candidates give the token that the whole row gives, whenever they decide; and for
    /// the filters that servers use they do.
    #[test]
    fn candidates_decide_as_the_whole_row_does(
        seed: u64,
        n in 1usize..1500,
        spread in 0.5f32..6.0,
        temperature in prop::sample::select(vec![0.0f32, 1e-40, 0.005, 0.3, 1.0, 2.0]),
        top_k in prop::sample::select(vec![0usize, 1, 20, 300]),
        top_p in prop::sample::select(vec![1.0f32, 0.95, 0.5, 1e-6]),
        min_p in prop::sample::select(vec![0.0f32, 0.05, 1.0, 1e-9]),
        presence in prop::sample::select(vec![0.0f32, 0.7, -1.5]),
        bias in prop::sample::select(vec![None, Some(-100.0f32), Some(3.0), Some(-2.0)]),
        forbidden in prop::collection::vec(0u32..1500, 0..3),
        allow_every in prop::sample::select(vec![None, Some(2u32), Some(7)]),
    ) {
        let options = SamplingOptions {
            temperature, top_k, top_p, min_p,
            seed: Some(seed),
            presence_penalty: presence,
            logit_bias: bias.map(|b| (seed as u32 % n as u32, b)).into_iter().collect(),
            ..SamplingOptions::default()
        };
        let mut state = seed | 1;
        let logits: Vec<f32> = (0..n).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let x = (state >> 40) as f32 / (1u64 << 24) as f32;
            // On a grid, so that there are equal ones; the largest stand out as they do in text.
            ((-(x + 1e-6).ln()) * spread * 4.0).round() / 4.0
        }).collect();
        let constraint = Constraint {
            greedy: false,
            forbidden,
            allowed: allow_every.map(|every| {
                let mut set = TokenSet::empty(n);
                (0..n as u32).filter(|t| t % every == 0).for_each(|t| set.insert(t));
                Arc::new(set)
            }),
        };
        let mut sampler = Sampler::new(options, &[]);
        for _ in 0..4 {
            let chosen = Chosen::new(&logits, sampler.wanted(None));
            let mut by_row = sampler.clone();
            let row = by_row.sample_within(&logits, &constraint).unwrap();
            let found = sampler.choose(&chosen.candidates(), n, &constraint).unwrap();
            if let Some(found) = found {
                prop_assert_eq!(found, row);
            }
            sampler = by_row;
        }
    }
}

#[test]
fn candidates_decide_for_the_filters_that_servers_use() {
    // Logits of text: a few likely tokens, the others far below.
    let n = 129_280;
    let logits: Vec<f32> = (0..n)
        .map(|i| 20.0 - 3.0 * ((i * 7919 % n + 1) as f32).ln())
        .collect();
    for (top_p, min_p) in [(0.95, 0.05), (0.95, 0.0), (1.0, 0.05), (0.5, 0.0)] {
        let options = SamplingOptions {
            top_p,
            min_p,
            seed: Some(3),
            ..SamplingOptions::default()
        };
        let mut sampler = Sampler::new(options, &[]);
        for _ in 0..50 {
            let chosen = Chosen::new(&logits, sampler.wanted(None));
            let mut by_row = sampler.clone();
            let none = Constraint::default();
            let found = sampler.choose(&chosen.candidates(), n, &none).unwrap();
            assert_eq!(
                found,
                by_row.sample(&logits).ok(),
                "top_p {top_p}, min_p {min_p}"
            );
        }
    }
}

#[test]
fn no_finite_option_makes_a_sampler_fail() {
    let extremes = [1e-40, f32::MIN_POSITIVE, 1e-6, 1.0, 1e6, f32::MAX];
    let logits = [1.0, -3.0, 0.0, 1e30, -1e30, f32::MAX, f32::MIN, 2.0];
    for repetition_penalty in extremes {
        for temperature in [0.0, 1e-40, 1.0, 2.0] {
            for min_p in [0.0, 1e-40, 1.0] {
                for top_p in [1e-40, 1.0] {
                    let options = SamplingOptions {
                        repetition_penalty,
                        temperature,
                        min_p,
                        top_p,
                        seed: Some(1),
                        presence_penalty: -2.0,
                        frequency_penalty: 2.0,
                        ..SamplingOptions::default()
                    };
                    options.validate(logits.len()).expect("valid");
                    let mut sampler = Sampler::new(options, &[0, 1, 3, 5]);
                    for _ in 0..20 {
                        let token = sampler.sample(&logits).expect("finite");
                        assert!((token as usize) < logits.len());
                    }
                }
            }
        }
    }
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut sampler = Sampler::new(SamplingOptions::greedy(), &[]);
        assert_eq!(sampler.sample(&[1.0, bad, 2.0]), Err(NotFinite));
        let candidates = Candidates {
            ids: &[0],
            values: &[1.0],
            lse: f32::NAN,
            lse_at_temperature: f32::NAN,
        };
        let chosen = sampler.choose(&candidates, 3, &Constraint::default());
        assert_eq!(chosen, Err(NotFinite));
    }
}
