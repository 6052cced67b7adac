//! The words two people compare: a fingerprint said aloud.
//!
//! Owns: the list of 256 words and the rule from bytes to words. Leaves to others: trust. Words are a
//! comfort for people; what is pinned is the whole fingerprint, and what proves a pairing is the code.

use flocker_core::ids::Fingerprint;

/// How many words are shown: six bytes of the fingerprint, 48 bits.
pub const WORD_COUNT: usize = 6;

/// Renders the first [`WORD_COUNT`] bytes of a fingerprint as words joined by `-`.
///
/// The same fingerprint always gives the same words, on every version: the list below is part of
/// what people wrote down, so it never changes.
pub fn words(fingerprint: &Fingerprint) -> String {
    fingerprint.0[..WORD_COUNT]
        .iter()
        .map(|byte| WORDS[usize::from(*byte)])
        .collect::<Vec<_>>()
        .join("-")
}

/// Short everyday nouns, no two sharing their first four letters, so that one misheard or cut short
/// is still told apart.
#[rustfmt::skip]
const WORDS: [&str; 256] = [
    "acorn", "amber", "anchor", "apple", "apron", "arrow", "aspen", "atlas",
    "badge", "bagel", "balsa", "banjo", "barley", "basil", "beacon", "beaver",
    "bench", "birch", "bishop", "bison", "blanket", "blossom", "bonfire", "bottle",
    "bramble", "breeze", "bridge", "bronze", "bucket", "buffalo", "bugle", "button",
    "cabin", "cactus", "camel", "candle", "canoe", "canyon", "carbon", "carpet",
    "carrot", "castle", "cedar", "cello", "chalk", "cherry", "chimney", "cider",
    "cinnamon", "circus", "clover", "cobalt", "coconut", "comet", "compass", "copper",
    "coral", "cotton", "cowboy", "crayon", "cricket", "crystal", "cupboard", "curtain",
    "cymbal", "daisy", "dolphin", "domino", "donkey", "dragon", "drizzle", "drum",
    "duckling", "eagle", "easel", "eclipse", "elbow", "elephant", "ember", "engine",
    "envelope", "falcon", "feather", "fennel", "ferry", "fiddle", "finch", "flagpole",
    "flamingo", "flute", "forest", "fossil", "fountain", "foxglove", "frigate", "galaxy",
    "garlic", "gazelle", "geyser", "ginger", "giraffe", "glacier", "goblet", "goose",
    "granite", "grape", "guitar", "hamlet", "hammer", "harbor", "hazel", "hedgehog",
    "helmet", "heron", "hickory", "honey", "horizon", "hornet", "husky", "iceberg",
    "igloo", "indigo", "island", "ivory", "jacket", "jaguar", "jasmine", "jelly",
    "jigsaw", "jungle", "juniper", "kayak", "kettle", "kitten", "koala", "ladder",
    "lagoon", "lantern", "laurel", "lemon", "leopard", "lettuce", "lilac", "linen",
    "lizard", "lobster", "locket", "lotus", "magnet", "mango", "maple", "marble",
    "meadow", "melon", "meteor", "mitten", "monsoon", "mosaic", "mountain", "muffin",
    "mustard", "napkin", "nectar", "needle", "nickel", "nutmeg", "oasis", "obelisk",
    "octopus", "olive", "onion", "orbit", "orchid", "osprey", "otter", "oyster",
    "paddle", "panda", "papaya", "parsley", "peacock", "pebble", "pelican", "penguin",
    "pepper", "phoenix", "piano", "pigeon", "pillow", "pirate", "planet", "plum",
    "pocket", "pony", "poppy", "prairie", "pumpkin", "puzzle", "pyramid", "quartz",
    "quilt", "rabbit", "radish", "raven", "rhubarb", "ribbon", "river", "rocket",
    "rooster", "rudder", "saddle", "saffron", "salad", "salmon", "sandal", "sapphire",
    "satchel", "saturn", "shadow", "shovel", "silver", "sparrow", "spider", "spinach",
    "sunset", "teapot", "thistle", "thunder", "tiger", "timber", "tomato", "topaz",
    "tornado", "trumpet", "tulip", "tundra", "turtle", "umbrella", "unicorn", "valley",
    "vanilla", "velvet", "violin", "volcano", "waffle", "walnut", "walrus", "willow",
    "window", "winter", "wizard", "wombat", "yogurt", "zebra", "zephyr", "zigzag",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_distinct_in_their_first_four_letters_and_sorted() {
        let mut starts: Vec<&str> = WORDS.iter().map(|w| &w[..4]).collect();
        assert!(WORDS.is_sorted());
        starts.dedup();
        assert_eq!(starts.len(), 256);
    }

    #[test]
    fn a_fingerprint_gives_the_same_six_words_for_ever() {
        let mut bytes = [0u8; 32];
        bytes[..6].copy_from_slice(&[0, 1, 2, 128, 254, 255]);
        assert_eq!(words(&Fingerprint(bytes)), "acorn-amber-anchor-jigsaw-zephyr-zigzag");
    }
}
