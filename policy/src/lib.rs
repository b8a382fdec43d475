//! May: authorization rules, from text to decision. Pure.
