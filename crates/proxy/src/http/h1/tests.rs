//! Tests of the codec, one file per question.

mod bodies;
mod corpus;
mod desync;
mod forward;
mod heads;
mod properties;
mod strictness;
