//! Pseudo-random numbers that are the same for the same seed.

/// A small generator (xorshift*), one for each try, so that a try can be made again by its number alone.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The dice of try `number` of a run with `seed`.
    pub(crate) fn new(seed: u64, number: u64) -> Dice {
        // splitmix64, so that neighbours have nothing in common; never 0, where xorshift would stay.
        let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
            mixed = (mixed ^ (mixed >> 29)).wrapping_mul(factor);
        }
        Dice((mixed ^ (mixed >> 32)) | 1)
    }

    /// A number below `sides`; 0 where there are none.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        (number % sides.max(1) as u64) as usize
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.roll(times) == 0
    }

    /// One of `choices`, which aren't empty.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.roll(choices.len())]
    }
}
