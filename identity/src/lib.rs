//! Who: SPIFFE ids, SVIDs, trust bundles and the one verifier.
