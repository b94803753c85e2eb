//! The protocol without one of its rules: each must yield a counter-example, or the check proves nothing.

use crate::explorer::explore;
use crate::scenario::{Rule, Scenario};
use crate::scenarios as sc;

/// Each rule, with a scenario that needs it.
const NEEDED: &[(Rule, Scenario)] = &[
    (Rule::Gate, sc::FILLS),
    (Rule::LeaseVoided, sc::FILLS),
    (Rule::LoIsHighWater, sc::FILLS),
    (Rule::HiIsInsertPosition, sc::FILLS),
    (Rule::ReadLsnCoversHi, sc::FILLS),
    (Rule::PopulateBeyondTakeover, sc::POPULATE),
    (Rule::Epoch, sc::POPULATE),
    (Rule::Coalesced, sc::PIECES),
    (Rule::PieceServedFromWatermark, sc::PIECES),
    (Rule::PieceOverwritesPiece, sc::PIECES),
    (Rule::PieceBeyondTakeover, sc::PIECES),
    (Rule::TakeoverPerStream, sc::PIECES),
    (Rule::TakeoverAtomic, sc::POPULATE),
    (Rule::AsOfBeforeFetch, sc::L1),
    (Rule::FencesBeforeWatermark, sc::L1),
    (Rule::FloorOnReset, sc::LOSSES_L1),
    (Rule::GapNoticed, sc::TRIMS),
    (Rule::TrustByDone, Scenario { must_arrive: false, ..sc::LOSSES }),
    (Rule::TrustCountsPending, sc::LOSSES_L1),
    (Rule::FeedBeforeDone, sc::LOSSES_L1),
    (Rule::TakeoverPerConnection, Scenario { must_arrive: false, ..sc::LOSSES }),
    (Rule::ConfirmAfterApply, sc::INVALIDATE),
    (Rule::TruncateRaisesGeneration, sc::TRUNCATE),
    (Rule::MinLsnFromStandby, sc::STANDBY),
    (Rule::StandbyHasHighWater, sc::STANDBY),
];

#[test]
fn every_rule_is_needed() {
    let mut not_needed = Vec::new();
    for &(rule, scenario) in NEEDED {
        let s = Scenario { without: Some(rule), ..scenario };
        let report = explore(&s);
        match report.found {
            Some(found) => println!("{}  ({} states seen)\n", found.print(&s), report.states),
            None => not_needed.push((rule, s.name, report.states)),
        }
    }
    assert!(not_needed.is_empty(), "the check passes without these rules: {not_needed:?}");
}
