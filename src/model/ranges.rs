//! Sets of whole numbers as ranges: ports, protocols, or addresses taken as numbers.

use std::ops::RangeInclusive;

/// A set of numbers, as ranges that ascend and do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<(u128, u128)>);

impl RangeSet {
    /// Every number.
    pub fn all() -> Self {
        RangeSet(vec![(0, u128::MAX)])
    }

    /// No number.
    pub fn none() -> Self {
        RangeSet(Vec::new())
    }

    /// One number.
    pub fn one(number: impl Into<u128>) -> Self {
        let number = number.into();
        RangeSet(vec![(number, number)])
    }

    /// A range; none where it ends before it begins.
    pub fn range(range: RangeInclusive<u128>) -> Self {
        [range].into_iter().collect()
    }

    /// Whether it is empty.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it leaves nothing out.
    pub fn is_all(&self) -> bool {
        self.0 == [(0, u128::MAX)]
    }

    /// How many ranges it has.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u128>> + '_ {
        self.0.iter().map(|(first, last)| *first..=*last)
    }

    /// What is in both.
    pub fn and(&self, other: &Self) -> Self {
        let (mut mine, mut theirs) = (self.0.as_slice(), other.0.as_slice());
        let mut both = Vec::new();
        while let (Some(((first, last), my_rest)), Some(((other_first, other_last), their_rest))) =
            (mine.split_first(), theirs.split_first())
        {
            let shared = (*first.max(other_first), *last.min(other_last));
            if shared.0 <= shared.1 {
                both.push(shared);
            }
            if last < other_last { mine = my_rest } else { theirs = their_rest }
        }
        RangeSet(both)
    }

    /// What is not in it.
    pub fn inverse(&self) -> Self {
        let mut next = Some(0);
        let mut rest = Vec::new();
        for (first, last) in &self.0 {
            if let Some(next) = next.filter(|next| next < first) {
                rest.push((next, first - 1));
            }
            next = last.checked_add(1);
        }
        rest.extend(next.map(|next| (next, u128::MAX)));
        RangeSet(rest)
    }

    /// What is in this one and not in the other.
    pub fn without(&self, other: &Self) -> Self {
        self.and(&other.inverse())
    }

    /// Whether all of the other is in it.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(first, last)| {
            self.0.iter().any(|(own_first, own_last)| own_first <= first && last <= own_last)
        })
    }

    /// Whether a number is in it.
    pub fn contains(&self, number: u128) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// Whether the two have a number in common.
    pub fn meets(&self, other: &Self) -> bool {
        let (few, many) = if self.0.len() < other.0.len() { (self, other) } else { (other, self) };
        few.0.iter().any(|(first, last)| {
            // The first range that does not end before this one begins.
            let at = many.0.partition_point(|(_, before)| before < first);
            many.0.get(at).is_some_and(|(next, _)| next <= last)
        })
    }

    /// Adds what is in the other.
    pub fn add(&mut self, other: &Self) {
        for (first, last) in &other.0 {
            // All ranges that overlap it or touch it become one.
            let from =
                self.0.partition_point(|(_, before)| before.checked_add(1).is_some_and(|next| next < *first));
            let to =
                self.0.partition_point(|(next, _)| last.checked_add(1).is_none_or(|after| *next <= after));
            let joined = match self.0.get(from..to) {
                Some([one, .., other]) => (one.0.min(*first), other.1.max(*last)),
                Some([one]) => (one.0.min(*first), one.1.max(*last)),
                _ => (*first, *last),
            };
            self.0.splice(from..to, [joined]);
        }
    }
}

impl FromIterator<RangeInclusive<u128>> for RangeSet {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u128>>>(ranges: I) -> Self {
        let mut sorted: Vec<(u128, u128)> = ranges
            .into_iter()
            .filter(|range| !range.is_empty())
            .map(|range| (*range.start(), *range.end()))
            .collect();
        sorted.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match joined.last_mut() {
                Some(before) if before.1 >= first || before.1 + 1 == first => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        RangeSet(joined)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(u128, u128)]) -> RangeSet {
        ranges.iter().map(|(first, last)| *first..=*last).collect()
    }

    #[test]
    fn the_ends_of_all_numbers_are_numbers_too() {
        assert!(RangeSet::all().inverse().is_none() && RangeSet::none().inverse().is_all());
        assert_eq!(RangeSet::one(0u8).inverse().inverse(), RangeSet::one(0u8));
        assert_eq!(set(&[(5, 3), (7, 9), (1, 6)]), set(&[(1, 9)]), "what touches is one");
        assert_eq!(set(&[(5, u128::MAX), (7, 9)]), set(&[(5, u128::MAX)]));
    }

    proptest! {
        #[test]
        fn they_behave_as_sets_do(
            one in proptest::collection::vec((0u128..40, 0u128..40), 0..6),
            other in proptest::collection::vec((0u128..40, 0u128..40), 0..6),
        ) {
            let (one, other) = (set(&one), set(&other));
            for number in 0..45 {
                let (in_one, in_other) = (one.contains(number), other.contains(number));
                prop_assert_eq!(one.and(&other).contains(number), in_one && in_other);
                prop_assert_eq!(one.inverse().contains(number), !in_one);
                prop_assert_eq!(one.without(&other).contains(number), in_one && !in_other);
            }
            prop_assert_eq!(one.covers(&other), other.without(&one).is_none());
            prop_assert_eq!(one.meets(&other), !one.and(&other).is_none());
            let mut both = one.clone();
            both.add(&other);
            prop_assert_eq!(both, one.ranges().chain(other.ranges()).collect::<RangeSet>());
        }
    }
}
