//! The ways that shortcuts name: what members that lead to the same place share, each once.

use std::collections::HashMap;

use egress_common::verdict::Member;

/// Which places are taken, by what, and by how many shortcuts.
///
/// A place is given to another way only once no shortcut names it, and shortcuts are written only where no packet comes.
#[derive(Debug, Default)]
pub(super) struct Ways {
    numbers: HashMap<Member, u32>,
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    way: Member,
    users: u32,
}

impl Ways {
    /// From the places that there are, and how many shortcuts name each. What does not name a way has none.
    pub(super) fn new(places: impl IntoIterator<Item = (Member, u32)>) -> Self {
        let mut ways = Self::default();
        for (number, (way, users)) in (0..).zip(places) {
            ways.places.push(Place { way, users });
            if users == 0 {
                ways.free.push(number);
            } else {
                ways.numbers.insert(way, number);
            }
        }
        // The lowest first.
        ways.free.reverse();
        ways
    }

    /// The place of a way, which has one user more; what is new is written there first. Nothing where there is no room.
    pub(super) fn take<E>(
        &mut self,
        way: &Member,
        write: impl FnOnce(u32) -> Result<(), E>,
    ) -> Result<Option<u32>, E> {
        let number = match self.numbers.get(way) {
            Some(number) => *number,
            None => {
                let Some(number) = self.free.last().copied() else {
                    return Ok(None);
                };
                write(number)?;
                self.free.pop();
                self.numbers.insert(*way, number);
                number
            }
        };
        if let Some(place) = self.places.get_mut(number as usize) {
            place.way = *way;
            place.users += 1;
        }
        Ok(Some(number))
    }

    /// A shortcut names the way in this place no more.
    pub(super) fn give_back(&mut self, number: u32) {
        let Some(place) = self.places.get_mut(number as usize) else {
            return;
        };
        place.users = place.users.saturating_sub(1);
        if place.users == 0 && self.numbers.get(&place.way) == Some(&number) {
            self.numbers.remove(&place.way);
            self.free.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use egress_common::{Addr, gateway::GatewayId, verdict::Replies};

    use super::*;

    fn way(last: u8) -> Member {
        let next_hop = Addr::v4([192, 0, 2, last]);
        Member::next_hop(0, GatewayId::default(), 7, 1500, next_hop, Replies::Kernel)
    }

    /// Takes a way, and tells its place and whether it was written.
    fn taken(ways: &mut Ways, last: u8) -> (Option<u32>, bool) {
        let mut written = false;
        let place = ways.take(&way(last), |_| {
            written = true;
            Ok::<_, ()>(())
        });
        (place.ok().flatten(), written)
    }

    #[test]
    fn a_way_is_written_once_and_shared() {
        let mut ways = Ways::new([(Member::default(), 0); 2]);
        assert_eq!(taken(&mut ways, 1), (Some(0), true));
        assert_eq!(taken(&mut ways, 1), (Some(0), false));
        assert_eq!(taken(&mut ways, 2), (Some(1), true));
        assert_eq!(taken(&mut ways, 3), (None, false));
        ways.give_back(0);
        assert_eq!(taken(&mut ways, 3), (None, false), "one user is left");
        ways.give_back(0);
        assert_eq!(taken(&mut ways, 3), (Some(0), true));
        assert_eq!(taken(&mut ways, 1), (None, false));
    }

    #[test]
    fn a_way_that_could_not_be_written_takes_no_place() {
        let mut ways = Ways::new([(Member::default(), 0)]);
        assert_eq!(ways.take(&way(1), |_| Err("full")), Err("full"));
        assert_eq!(taken(&mut ways, 1), (Some(0), true));
    }

    #[test]
    fn what_was_there_before_is_known_by_its_users() {
        let mut ways = Ways::new([(way(1), 0), (way(2), 1), (way(2), 1)]);
        assert!(!taken(&mut ways, 2).1);
        assert_eq!(taken(&mut ways, 1), (Some(0), true));
        assert_eq!(taken(&mut ways, 3), (None, false));
    }
}
