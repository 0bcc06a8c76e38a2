//! Pictures of how the cost grows: with pods, prefixes, policies and flows.

use std::{ops::Range, path::Path};

use anyhow::{Result, anyhow};
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    drawing::IntoDrawingArea as _,
    element::{Circle, PathElement},
    prelude::{IntoLogRange as _, SVGBackend},
    series::LineSeries,
    style::{BLACK, Color as _, IntoFont as _, Palette as _, Palette99, WHITE},
};

use crate::{
    forward::{FORWARDING, NEIGHBOUR, RULES},
    measured::Measured,
    program::{OURS, PREFIXES, STEERING, TRANSLATING},
};

/// A picture in the making.
struct Picture {
    file: &'static str,
    title: &'static str,
    /// What the cost is, without an empty program's or with everything's.
    cost: &'static str,
    /// What grows to the right.
    grows: &'static str,
    /// How much of it there is, in which scene.
    scenes: &'static [(f64, &'static str, &'static str)],
    /// Which subjects have a line; an addition to the scene's name goes with each.
    subjects: &'static [(&'static str, &'static str)],
}

const NET: &str = "nanoseconds, net";

const TRIES: &[(&str, &str)] = &[
    ("ours", ""),
    ("LPM {source, destination}", ""),
    ("LPM {policy, destination}", ""),
    ("floor", ""),
];

const PICTURES: &[Picture] = &[
    Picture {
        file: "pods.svg",
        title: "A packet's cost by pods, with a policy of 100 prefixes each",
        cost: NET,
        grows: "pods",
        scenes: &[
            (1.0, STEERING, "1 × 100"),
            (100.0, STEERING, "100 × 100"),
            (1000.0, STEERING, "1000 × 100"),
        ],
        subjects: TRIES,
    },
    Picture {
        file: "prefixes.svg",
        title: "A packet's cost by prefixes of one policy",
        cost: NET,
        grows: "prefixes",
        scenes: &[
            (1.0, STEERING, "1 × 1"),
            (100.0, STEERING, "1 × 100"),
            (1e4, PREFIXES, "1 × 10k"),
            (1e5, PREFIXES, "1 × 100k"),
            (1e6, PREFIXES, "1 × 1M"),
        ],
        subjects: TRIES,
    },
    Picture {
        file: "policies.svg",
        title: "A packet's cost by policies of 100 prefixes",
        cost: NET,
        grows: "policies",
        scenes: &[
            (1.0, STEERING, "1 × 100"),
            (10.0, STEERING, "1000 × 100 of 10 policies"),
            (100.0, STEERING, "100 × 100"),
            (1000.0, STEERING, "1000 × 100"),
        ],
        subjects: TRIES,
    },
    Picture {
        file: "forwarding.svg",
        title: "A packet's way from its pod to a gateway by policies of 100 prefixes",
        cost: "nanoseconds, with what sends it",
        grows: "policies",
        scenes: &[
            (10.0, FORWARDING, "10 × 100"),
            (100.0, FORWARDING, "100 × 100"),
            (1000.0, FORWARDING, "1000 × 100"),
        ],
        subjects: &[(OURS, ""), (RULES, ""), (NEIGHBOUR, "")],
    },
    Picture {
        file: "flows.svg",
        title: "A translated packet's cost by flows",
        cost: NET,
        grows: "flows",
        scenes: &[
            (1e3, TRANSLATING, "1000 flows"),
            (5e4, TRANSLATING, "50k flows"),
            (3e5, TRANSLATING, "300k flows"),
        ],
        subjects: &[
            ("ours, from the overlay", ", from the overlay"),
            ("ours, a reply", ", replies"),
            ("ours, of a pod here", ""),
            ("one look-up and rewrite", ""),
        ],
    },
];

type Line = (&'static str, Vec<(f64, f64)>);

/// Draws every picture of which at least two points of a line were measured.
pub(crate) fn draw(folder: &Path, figures: &[Measured]) -> Result<()> {
    for picture in PICTURES {
        let lines = lines(picture, figures);
        if lines.iter().any(|(_, points)| points.len() > 1) {
            let file = folder.join(picture.file);
            render(picture, &lines, &file)
                .map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))?;
        }
    }
    Ok(())
}

fn lines(picture: &Picture, figures: &[Measured]) -> Vec<Line> {
    let line = |(subject, addition): &(&'static str, &'static str)| {
        let points = picture.scenes.iter().filter_map(|(x, group, scene)| {
            let scene = format!("{scene}{addition}");
            let figure = figures.iter().find(|f| f.is(group, &scene, subject))?;
            // A logarithm has no place for less.
            Some((*x, figure.min.max(1.0)))
        });
        (*subject, points.collect())
    };
    let lines = picture.subjects.iter().map(line);
    lines
        .filter(|(_, points): &Line| !points.is_empty())
        .collect()
}

fn render(
    picture: &Picture,
    lines: &[Line],
    file: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(file, (800, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let all = || lines.iter().flat_map(|(_, points)| points);
    let mut chart = ChartBuilder::on(&area)
        .caption(picture.title, ("sans-serif", 20).into_font())
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(
            around(all().map(|(x, _)| *x)).log_scale(),
            around(all().map(|(_, y)| *y)).log_scale(),
        )?;
    chart
        .configure_mesh()
        // Of logarithms they are not spread evenly, and in places too many.
        .max_light_lines(0)
        .x_desc(picture.grows)
        .y_desc(picture.cost)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    for (index, (subject, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(index);
        let style = color.stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(*subject)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style));
        let color = Palette99::pick(index);
        chart.draw_series(
            points
                .iter()
                .map(|point| Circle::new(*point, 3, color.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}

/// From a little less than the smallest to twice the largest.
fn around(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) = values.fold((f64::MAX, 1.0_f64), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    (least * 0.8).max(0.5)..most * 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measured::Unit;

    #[test]
    fn lines_have_the_points_that_were_measured() {
        let of = |group, scene, subject, ns| {
            Measured::of_samples(group, scene, subject, Unit::Nanoseconds, &[ns])
        };
        let figures = [
            of(STEERING, "1 × 100", "ours", 40.0),
            of(STEERING, "1000 × 100", "ours", 50.0),
            of(STEERING, "1000 × 100", "floor", -0.5),
            of(TRANSLATING, "50k flows, replies", "ours, a reply", 300.0),
            of(FORWARDING, "100 × 100", RULES, 1475.0),
            of(FORWARDING, "1000 × 100", RULES, 11_100.0),
        ];
        let found: Vec<Vec<Line>> = PICTURES
            .iter()
            .map(|picture| lines(picture, &figures))
            .collect();
        let steered = vec![
            ("ours", vec![(1.0, 40.0), (1000.0, 50.0)]),
            ("floor", vec![(1000.0, 1.0)]),
        ];
        assert_eq!(found[0], steered);
        assert_eq!(found[1], [("ours", vec![(100.0, 40.0)])]);
        assert_eq!(found[2], steered);
        assert_eq!(
            found[3],
            [(RULES, vec![(100.0, 1475.0), (1000.0, 11_100.0)])]
        );
        assert_eq!(found[4], [("ours, a reply", vec![(5e4, 300.0)])]);
    }
}
