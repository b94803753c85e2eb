//! The protocol without one of its rules: each must yield a counter-example, or the check proves nothing.

use crate::explorer::{explore_all, print_table};
use crate::rule::Rule;
use crate::scenario::Scenario;
use crate::scenarios::{self as sc, gaps, links, renewals, voids};

/// Each rule, with a scenario that needs it. Named as in the failure table and elsewhere: the gate off is `Gate`; the
/// lease off, `LeaseVoided` and `LeaseRequired`; the high-water mark off, `LoIsHighWater`; the epoch off, `Epoch`; L1's
/// fence off, `L1Fence`; the wait for a standby's replay off, `StandbyHasHighWater`.
const NEEDED: &[(Rule, Scenario)] = &[
    (Rule::Gate, sc::FILLS),
    (Rule::LeaseVoided, sc::FILLS),
    (Rule::LeaseRequired, sc::FILLS),
    (Rule::LoIsHighWater, sc::FILLS),
    (Rule::HiIsInsertPosition, sc::FILLS),
    (Rule::ReadLsnCoversHi, sc::FILLS),
    (Rule::FastBeyondTakeover, Scenario { entries_monotone: false, ..sc::REFRESH }),
    // These two are needed by `EntryBackwards` alone: O1 to O4 hold without them.
    (Rule::FastBeyondFilled, sc::FILLS),
    (Rule::PublishRaisesFilled, sc::FILLS),
    (Rule::PopulateBeyondTakeover, sc::POPULATE),
    (Rule::Epoch, sc::POPULATE),
    (Rule::TakeoverAtomic, sc::POPULATE),
    (Rule::ConfirmAfterApply, sc::INVALIDATE),
    (Rule::Coalesced, sc::PIECES),
    (Rule::PieceServedFromWatermark, sc::PIECES),
    (Rule::PieceOverwritesPiece, sc::PIECES),
    (Rule::PieceBeyondTakeover, sc::PIECES),
    (Rule::TakeoverPerStream, sc::PIECES),
    (Rule::L1Fence, sc::L1),
    (Rule::AsOfBeforeFetch, sc::L1),
    (Rule::FencesBeforeWatermark, sc::L1),
    (Rule::FloorOnReset, sc::TRIMS),
    (Rule::GapNoticed, sc::TRIMS),
    (Rule::TrustByDone, Scenario { must_arrive: false, ..sc::LOSSES }),
    (Rule::TakeoverPerConnection, Scenario { must_arrive: false, ..sc::LOSSES }),
    (Rule::TrustCountsPending, sc::LOSSES_L1),
    (Rule::FeedBeforeDone, sc::LOSSES_L1),
    (Rule::TruncateRaisesGeneration, sc::TRUNCATE),
    (Rule::MinLsnFromStandby, sc::STANDBY),
    (Rule::StandbyHasHighWater, sc::STANDBY),
    (Rule::EveryEffectRaisesHighWater, sc::STANDBY_DROPS),
    (Rule::TrustAdoptsGenerations, sc::HANDOVER_LOSSES),
    (Rule::ConfirmedReadHoldingSlot, Scenario { must_arrive: false, ..sc::OUTAGE_HANDOVER }),
    (Rule::ClaimComparesConfirmed, sc::OUTAGE_CRASH),
    (Rule::ClaimComparesWatermark, sc::OUTAGE),
    (Rule::OutageDistrusts, sc::OUTAGE),
    (Rule::OutageRaisesFences, sc::OUTAGE),
    (Rule::OutageRaisesGeneration, sc::OUTAGE_TRUNCATE),
    (Rule::GenerationBeforeConfirm, sc::ALONE_TRUNCATE),
    (Rule::GenerationBeforeWatermark, sc::ALONE_TRUNCATE),
    (Rule::GenerationBeforeRow, sc::ALONE_TRUNCATE),
    (Rule::TruncateDropsEarlier, sc::TRUNCATE_FEED),
    (Rule::GenerationAfterEntry, sc::LOSSES_L1),
    (Rule::GenerationChecked, sc::RESYNC),
    (Rule::EntityGenerationTaken, sc::ALONE_TRUNCATE),
    (Rule::MovedRowVoidsBoth, links::MANY),
    (Rule::LookupAfterGate, links::TIED),
    (Rule::LookupSeesItsTransaction, links::TIED),
    (Rule::HeldUntilSeen, links::LINKED),
    (Rule::OneSnapshotARound, links::CHAINED),
    (Rule::FoundRaisesFence, links::LINKED),
    (Rule::FloorInL2, voids::VOID),
    (Rule::FloorInL1, voids::VOID),
    (Rule::FloorComparesLo, voids::VOID),
    (Rule::FloorComparesAsOf, voids::VOID),
    (Rule::FloorBeforeWatermark, voids::VOID),
    (Rule::FloorBeforeConfirm, voids::VOID),
    (Rule::FloorsTaken, voids::VOID),
    (Rule::OutageRaisesFloors, voids::VOID_OUTAGE),
    (Rule::SweepRemovesLeases, voids::SWEEP),
    (Rule::RetiredOnceSwept, voids::SWEEP_REREAD),
    (Rule::RetiredAsSwept, voids::SWEEP_AGAIN),
    (Rule::RetiredBetweenBatches, voids::SWEEP_AGAIN),
    (Rule::RetiredOverSameConnection, voids::SWEEP_LOSSES),
    (Rule::SweptNotedFirst, voids::SWEEP),
    (Rule::SweptReadLast, voids::SWEEP_REREAD),
    (Rule::SweptReadBeforeEntry, voids::SWEEP_REREAD),
    (Rule::SweptInL1, voids::SWEEP),
    (Rule::MissedRemovedLater, voids::SWEEP_TWO),
    (Rule::RenewsSameHead, renewals::RENEW),
    (Rule::RenewsWhatStands, renewals::RENEW_L1),
    (Rule::RenewalReadsAfterClaim, renewals::RENEW),
    (Rule::RenewalLoIsHighWater, renewals::RENEW),
    (Rule::RenewalHiIsInsertPosition, renewals::RENEW),
    (Rule::RenewalGenerationBeforeRow, renewals::RENEW_TRUNCATE),
    (Rule::RenewalRaisesFilled, renewals::RENEW),
    (Rule::RenewalAsOfBeforeRow, renewals::RENEW_L1),
    (Rule::PredecessorBeforeChange, gaps::GAPS_POPULATE),
    (Rule::PredecessorOfGeneration, gaps::GAPS_OUTAGE),
    (Rule::PredecessorNotVoided, gaps::GAPS_VOID),
    (Rule::AuditEntryBeforeRow, sc::AUDIT),
    (Rule::AuditWaits, sc::AUDIT),
    (Rule::AuditLooksAgain, sc::AUDIT),
    (Rule::AuditExcusesOnlyChange, sc::AUDIT_PLANT),
];

#[test]
fn every_rule_is_needed() {
    let mutants: Vec<Scenario> = NEEDED.iter().map(|&(rule, s)| Scenario { without: Some(rule), ..s }).collect();
    let reports = explore_all(&mutants);
    for (s, report) in mutants.iter().zip(&reports) {
        if let Some(found) = &report.found {
            println!("{}", found.print(s));
        }
    }
    print_table("mutants", &mutants, &reports);
    let not_needed: Vec<_> =
        mutants.iter().zip(&reports).filter(|(_, r)| r.found.is_none()).map(|(s, _)| (s.without, s.name)).collect();
    assert!(not_needed.is_empty(), "the check passes without these rules: {not_needed:?}");
}
