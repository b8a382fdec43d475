//! Virtual pods in namespaces, a test CA, hostile and slow peers.
