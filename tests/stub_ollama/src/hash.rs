//! Small deterministic hashing for digests, ids, answers and vectors. Not cryptography.

/// A splitmix64 sequence.
#[derive(Clone, Debug)]
pub(crate) struct Sequence(u64);

impl Sequence {
    /// Starts a sequence that depends on every byte of `seed`.
    pub(crate) fn new(seed: &str) -> Self {
        // FNV-1a, 64 bit.
        let hash = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(hash)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit` (at least 1).
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// Returns 64 hex digits that depend on `seed`: the shape of a SHA-256.
pub(crate) fn hex64(seed: &str) -> String {
    let mut sequence = Sequence::new(seed);
    (0..4).map(|_| format!("{:016x}", sequence.next())).collect()
}
