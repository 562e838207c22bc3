//! Deterministic answers: the words, the vectors and the counts a request gets.

use crate::hash::Sequence;

/// Words of the answers. Some need Go's escaping, some are not ASCII: a proxy must not mind.
const WORDS: [&str; 24] = [
    "sea",
    "ship",
    "wind",
    "a",
    "the",
    "long",
    "story",
    "of",
    "salt",
    "and",
    "light",
    "café",
    "<b>",
    "x&y",
    "naïve",
    "\"quoted\"",
    "mast",
    "gull",
    "naval",
    "north",
    "tide",
    "rope",
    "über",
    "harbour",
];

/// Steps of one vector component: three decimals, so that every encoder prints them alike.
const VECTOR_STEPS: u64 = 998;

/// Makes the tokens of an answer. Equal arguments give equal tokens.
pub(crate) fn tokens(model: &str, prompt: &str, seed: Option<i64>, count: u32) -> Vec<String> {
    let seed = seed.map_or_else(|| "none".to_owned(), |seed| seed.to_string());
    let mut sequence = Sequence::new(&format!("{model}\0{prompt}\0{seed}"));
    let words = u64::try_from(WORDS.len()).unwrap_or(1);
    (0..count)
        .map(|position| {
            let index = usize::try_from(sequence.below(words)).unwrap_or(0);
            let space = if position == 0 { "" } else { " " };
            format!("{space}{}", WORDS[index])
        })
        .collect()
}

/// Returns the text a plain request is answered with, so that tests can tell answers apart.
///
/// `model` is the canonical name (`llama3:latest`), `prompt` the prompt or the last message,
/// `tokens` the token limit or `StubConfig::default_tokens`.
#[must_use]
pub fn expected_text(model: &str, prompt: &str, seed: Option<i64>, tokens: u32) -> String {
    self::tokens(model, prompt, seed, tokens).concat()
}

/// Makes one embedding; components lie strictly between 0 and 1.
pub(crate) fn vector(model: &str, input: &str, length: u32) -> Vec<String> {
    let mut sequence = Sequence::new(&format!("vector\0{model}\0{input}"));
    (0..length)
        .map(|_| {
            let digits = format!("0.{:03}", 1 + sequence.below(VECTOR_STEPS));
            digits.trim_end_matches('0').to_owned()
        })
        .collect()
}

/// Counts the tokens of a prompt: its words and a few for the template.
pub(crate) fn prompt_tokens(prompt: &str) -> u32 {
    const TEMPLATE_TOKENS: u32 = 4;
    let words = u32::try_from(prompt.split_whitespace().count()).unwrap_or(u32::MAX);
    words.saturating_add(TEMPLATE_TOKENS)
}

/// Makes the `context` array of a generate answer.
pub(crate) fn context(prompt: &str, answer_tokens: u32) -> Vec<u64> {
    const VOCABULARY_SIZE: u64 = 32_000;
    let mut sequence = Sequence::new(prompt);
    let count = prompt_tokens(prompt).saturating_add(answer_tokens);
    (0..count).map(|_| sequence.below(VOCABULARY_SIZE)).collect()
}
