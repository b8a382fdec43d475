//! End-to-end tests: real programs over two sidecars.
