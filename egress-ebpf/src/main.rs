//! The TC programs of the egress gateway.
#![no_std]
#![no_main]
