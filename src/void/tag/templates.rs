//! Many templates, asked together whether any of them can make a tag: applications name very many tags at a time, and every
//! entity may have templates of its own.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Part, Template};

/// What a template's tags begin with, and what they end with.
type Ends = (Box<str>, Box<str>);

/// Templates that differ in more than the names of their columns, by how their tags begin and end.
#[derive(Debug, Default)]
pub struct Templates {
    by_start: HashMap<Box<str>, HashMap<Box<str>, Vec<Template>>>,
    /// How long these beginnings and ends are.
    lengths: BTreeSet<(usize, usize)>,
}

impl<'t> FromIterator<&'t Template> for Templates {
    fn from_iter<I: IntoIterator<Item = &'t Template>>(templates: I) -> Self {
        let mut all = Templates::default();
        for template in templates.into_iter().map(nameless).collect::<HashSet<_>>() {
            let (start, end) = ends(&template);
            all.lengths.insert((start.len(), end.len()));
            all.by_start.entry(start).or_default().entry(end).or_default().push(template);
        }
        all
    }
}

impl Templates {
    /// Whether this can be a tag of any of them: see [`Template::can_make`].
    pub fn can_make(&self, tag: &str) -> bool {
        self.candidates(tag).any(|template| template.can_make(tag))
    }

    /// Those whose tags begin and end as this one does.
    fn candidates(&self, tag: &str) -> impl Iterator<Item = &Template> {
        let of_lengths = move |(start, end): &(usize, usize)| {
            let start = tag.get(..*start)?;
            let end = tag.get(tag.len().checked_sub(*end)?..)?;
            self.by_start.get(start)?.get(end)
        };
        self.lengths.iter().filter_map(of_lengths).flatten()
    }
}

/// The template without the names of its columns: what tags it can make does not depend on them.
fn nameless(template: &Template) -> Template {
    let part = |part: &Part| match part {
        Part::Column(_) => Part::Column(String::new()),
        text => text.clone(),
    };
    Template(template.0.iter().map(part).collect())
}

/// Empty is any beginning, or end. A text alone is a beginning.
fn ends(template: &Template) -> Ends {
    let text = |part: &Part| match part {
        Part::Text(text) => text.as_str().into(),
        Part::Column(_) => Box::default(),
    };
    match &template.0[..] {
        [] => Ends::default(),
        [only] => (text(only), Box::default()),
        [first, .., last] => (text(first), text(last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn templates(texts: &[String]) -> Vec<Template> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn few_of_many_templates_are_asked() {
        let of_each = |form: &dyn Fn(usize) -> String| templates(&(0..1000).map(form).collect::<Vec<_>>());
        for (all, tag, asked) in [
            (of_each(&|n| format!("tenant:{{t{n}}}")), "tenant:7", 1),
            (of_each(&|n| format!("e{n}:{{id}}")), "e77:7", 2),
            (of_each(&|n| format!("e{n}:{{id}}")), "x", 0),
            (of_each(&|n| format!("t:{{t}}:e{n}")), "t:7:e77", 1),
            (of_each(&|n| format!("{{t}}:e{n}")), "7:e77", 1),
            (of_each(&|n| format!("all-e{n}")), "all-e77", 2),
        ] {
            let all: Templates = all.iter().collect();
            assert!(all.candidates(tag).count() <= asked, "{tag}: {}", all.candidates(tag).count());
            assert_eq!(all.can_make(tag), asked > 0, "{tag}");
        }
    }

    proptest! {
        #[test]
        fn they_agree_with_each_template(
            texts in proptest::collection::vec("(a|b|é|\\{x\\}|\\{yy\\}){1,4}", 0..6),
            tag in "(a|b|é){0,5}",
        ) {
            let each = templates(&texts);
            let together: Templates = each.iter().collect();
            prop_assert_eq!(together.can_make(&tag), each.iter().any(|template| template.can_make(&tag)));
        }
    }
}
