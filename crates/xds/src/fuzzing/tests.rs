use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::convert::tests::sample;

/// Good resources, damaged in a way that is the same in every run: what a fuzzer would try first.
#[test]
fn damaged_resources_never_panic_and_what_is_taken_survives() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut random = fastrand::Rng::with_seed(7);
    let mut taken = 0;
    for _ in 0..400 {
        let resource = sample::resource().new_tree(&mut runner).unwrap().current();
        let encoded = encode(&resource, ClientKind::ALL[random.usize(..3)]);
        let kind = ResourceKind::ALL.iter().position(|k| *k == resource.kind()).unwrap() as u8;
        for _ in 0..12 {
            let mut bytes = vec![kind];
            bytes.extend_from_slice(&encoded.value);
            for _ in 0..random.usize(..4) {
                damage(&mut bytes, &mut random);
            }
            taken += usize::from(
                decode(
                    type_url(ResourceKind::ALL[usize::from(bytes[0]) % ResourceKind::ALL.len()]),
                    &bytes[1..],
                )
                .is_ok(),
            );
            fuzz_decode(&bytes);
        }
    }
    assert!(taken > 1000, "only {taken} of the damaged resources reached the second half of the body");
}

fn damage(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    if bytes.len() < 3 {
        return;
    }
    let at = random.usize(1..bytes.len());
    match random.u8(..6) {
        0 => bytes[at] ^= 1 << random.u8(..8),
        1 => bytes[at] = *random.choice(&[0x00, 0x01, 0x7f, 0x80, 0xff]).unwrap(),
        2 => bytes.truncate(at),
        3 => drop(bytes.remove(at)),
        4 => bytes.insert(at, random.u8(..)),
        _ => {
            let end = random.usize(at..bytes.len()).min(at + 64);
            let piece = bytes[at..end].to_vec();
            let to = random.usize(1..bytes.len());
            bytes.splice(to..to, piece);
        }
    }
}

#[test]
fn nonsense_is_refused() {
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..2000 {
        let length = random.usize(..200);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        fuzz_decode(&bytes);
    }
    fuzz_decode(&[]);
}

/// Deeper than prost follows: refused, and the stack is whole.
#[test]
fn a_policy_that_nests_without_end_is_refused() {
    let mut permission = Vec::new();
    for _ in 0..5_000 {
        // Permission.not_rule = 8, length-delimited.
        let mut outer = vec![8 << 3 | 2];
        prost::encoding::encode_varint(permission.len() as u64, &mut outer);
        outer.extend_from_slice(&permission);
        permission = outer;
    }
    let wrap = |field: u8, inner: &[u8]| {
        let mut outer = vec![field << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        outer.extend_from_slice(inner);
        outer
    };
    // network.rbac.v3.RBAC { rules: RBAC { policies: { "": Policy { permissions: [..] } } } } in a filter of a chain.
    let rbac = wrap(1, &wrap(2, &wrap(2, &wrap(1, &permission))));
    let any = [wrap(1, b"type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"), wrap(2, &rbac)]
        .concat();
    let listener = [wrap(1, b"l"), wrap(3, &wrap(3, &wrap(4, &any)))].concat();
    let refused = decode(type_url(ResourceKind::Listener), &listener).unwrap_err();
    assert!(refused.reason.contains("recursion limit"), "{refused}");
}

#[test]
fn the_corpus_holds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/xds");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 10, "the corpus is gone");
    files.into_iter().for_each(|file| fuzz_decode(&std::fs::read(file).unwrap()));
}
