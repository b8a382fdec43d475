//! What is known of one kind: it grows and shrinks with its watch, and a list takes the place of all that was before, at once.
//!
//! Fed by `world`. It must never forget an object because a watch broke: only a deletion, or a complete list without it, does that.

use std::collections::BTreeMap;

use crate::source::kubernetes::objects::Key;

/// What a watch says. As `kube`'s, without `kube`.
#[derive(Debug, Clone)]
pub enum Event<T> {
    /// A list begins.
    Listing,
    /// An object of the list.
    Listed(T),
    /// The list is complete: what was not in it is gone.
    Complete,
    /// An object came or changed.
    Set(T),
    /// An object is gone.
    Gone(Key),
}

/// What an event touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// Nothing.
    Nothing,
    /// One object.
    One(Key),
    /// Perhaps all.
    All,
}

/// Objects of one kind.
#[derive(Debug)]
pub struct Held<T> {
    now: BTreeMap<Key, T>,
    arriving: Option<BTreeMap<Key, T>>,
    complete: bool,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Held { now: BTreeMap::new(), arriving: None, complete: false }
    }
}

impl<T> Held<T> {
    /// Whether a list was complete once.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// All that is known, by namespace and name.
    pub fn all(&self) -> &BTreeMap<Key, T> {
        &self.now
    }

    /// One object.
    pub fn find(&self, key: &Key) -> Option<&T> {
        self.now.get(key)
    }

    /// Takes an event in. `read` makes of an object, and of what was known of it, what is known now.
    pub fn take<O>(&mut self, event: Event<(Key, O)>, read: impl FnOnce(Option<&T>, O) -> T) -> Touched {
        match event {
            Event::Listing => {
                self.arriving = Some(BTreeMap::new());
                Touched::Nothing
            }
            Event::Listed((key, object)) => {
                let new = read(self.now.get(&key), object);
                self.arriving.get_or_insert_default().insert(key, new);
                Touched::Nothing
            }
            Event::Complete => {
                let Some(arrived) = self.arriving.take() else { return Touched::Nothing };
                self.now = arrived;
                self.complete = true;
                Touched::All
            }
            Event::Set((key, object)) => {
                let new = read(self.now.get(&key), object);
                self.now.insert(key.clone(), new);
                Touched::One(key)
            }
            Event::Gone(key) => match self.now.remove(&key) {
                Some(_) => Touched::One(key),
                None => Touched::Nothing,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (String::new(), name.to_owned())
    }

    fn take(held: &mut Held<u32>, event: Event<(Key, u32)>) -> Touched {
        held.take(event, |_, new| new)
    }

    fn names(held: &Held<u32>) -> Vec<&str> {
        held.all().keys().map(|(_, name)| name.as_str()).collect()
    }

    #[test]
    fn nothing_counts_until_the_list_is_complete_and_then_it_replaces_all() {
        let mut held = Held::default();
        take(&mut held, Event::Listing);
        take(&mut held, Event::Listed((key("a"), 1)));
        assert!(held.all().is_empty() && !held.is_complete());
        assert_eq!(take(&mut held, Event::Complete), Touched::All);
        assert_eq!(names(&held), ["a"]);
        take(&mut held, Event::Set((key("b"), 2)));
        // The watch breaks, and a list begins: what was known goes on until it is complete.
        take(&mut held, Event::Listing);
        take(&mut held, Event::Listed((key("b"), 3)));
        assert_eq!((names(&held), held.find(&key("b"))), (vec!["a", "b"], Some(&2)));
        // It breaks too, and the next one begins: what came before does not count.
        take(&mut held, Event::Listing);
        take(&mut held, Event::Listed((key("c"), 4)));
        assert_eq!(take(&mut held, Event::Complete), Touched::All);
        assert_eq!(names(&held), ["c"]);
    }

    #[test]
    fn what_was_known_of_an_object_is_at_hand_when_it_is_read_again() {
        let mut held: Held<u32> = Held::default();
        held.take(Event::Set((key("a"), 1)), |old, new| old.copied().unwrap_or(0) + new);
        held.take(Event::Listing, |_, new: u32| new);
        held.take(Event::Listed((key("a"), 2)), |old, new| old.copied().unwrap_or(0) + new);
        held.take(Event::Complete, |_, new: u32| new);
        assert_eq!(held.find(&key("a")), Some(&3));
        assert_eq!(take(&mut held, Event::Gone(key("b"))), Touched::Nothing);
        assert_eq!(take(&mut held, Event::Gone(key("a"))), Touched::One(key("a")));
    }
}
