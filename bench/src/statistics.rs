//! What becomes of samples: gates look at the smallest, readers at the median too.

/// The smallest sample; infinite if there is none.
pub(crate) fn min(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The sample in the middle, the upper one of two; not a number if there is none.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_a_smallest_and_a_middle() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (samples, smallest, middle) in [
            (&[7.0][..], 7.0, 7.0),
            (&[3.0, 1.0, 2.0], 1.0, 2.0),
            (&[4.0, 1.0, 3.0, 2.0], 1.0, 3.0),
            (&[-1.0, 5.0], -1.0, 5.0),
            (&hundred, 1.0, 51.0),
        ] {
            assert_eq!(min(samples), smallest, "{samples:?}");
            assert_eq!(median(samples), middle, "{samples:?}");
        }
    }

    #[test]
    fn nothing_measured_is_no_good_figure() {
        assert!(min(&[]).is_infinite());
        assert!(median(&[]).is_nan());
    }
}
