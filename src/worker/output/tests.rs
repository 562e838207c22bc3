//! The promises of an output: hidden until shown, the same bytes for every follower, in memory or from the file.

#![expect(clippy::disallowed_methods, reason = "a test ends with its runtime, and all its tasks")]

use super::*;

fn output(folder: &tempfile::TempDir, bytes_max: u64) -> Arc<Output> {
    let output = Output::new(folder.path().join("answers").join("one"), bytes_max);
    output.follow();
    Arc::new(output)
}

fn head() -> Head {
    Head { status: 200, headers: Vec::new() }
}

async fn read_all(output: &Arc<Output>) -> (Vec<u8>, End) {
    let mut follower = Follower::new(Arc::clone(output), 0);
    let mut bytes = Vec::new();
    loop {
        match follower.next().await {
            Next::Bytes(more) => bytes.extend_from_slice(&more),
            Next::End(end) => return (bytes, end),
        }
    }
}

#[tokio::test]
async fn a_hidden_answer_may_start_over_and_shows_nothing_of_the_first_try() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(&folder, 1000);
    output.begin(head());
    output.push(Bytes::from_static(b"first try")).await.unwrap();
    output.start_over(Timings::default());
    output.begin(head());
    output.push(Bytes::from_static(b"second")).await.unwrap();
    output.end(End::Whole);
    assert_eq!(read_all(&output).await, (b"second".to_vec(), End::Whole));
}

#[tokio::test]
async fn a_shown_answer_does_not_start_over() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(&folder, 1000);
    output.begin(head());
    output.push(Bytes::from_static(b"seen")).await.unwrap();
    output.show();
    output.start_over(Timings::default());
    assert!(output.is_shown());
    assert_eq!(output.bytes(), 4);
}

#[tokio::test]
async fn a_follower_of_a_large_answer_reads_memory_then_file_while_it_grows() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(&folder, 64 * 1024 * 1024);
    output.begin(head());
    output.show();
    let reader = tokio::spawn({
        let output = Arc::clone(&output);
        async move { read_all(&output).await }
    });
    let mut expected = Vec::new();
    for number in 0..100_u32 {
        let chunk: Vec<u8> = number.to_le_bytes().repeat(10_000);
        expected.extend_from_slice(&chunk);
        output.push(Bytes::from(chunk)).await.unwrap();
    }
    output.end(End::Whole);
    let (bytes, end) = reader.await.unwrap();
    assert_eq!(end, End::Whole);
    assert!(bytes == expected, "{} of {} bytes", bytes.len(), expected.len());
    assert_eq!(output.in_memory(), None);
    let kept = std::fs::read(output.file_path()).unwrap();
    assert!(kept == expected, "the file holds the whole answer");
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(&folder, 10);
    output.push(Bytes::from_static(b"12345678")).await.unwrap();
    let fault = output.push(Bytes::from_static(b"9abc")).await.unwrap_err();
    assert!(matches!(fault, KeepError::TooLong(10)));
}

#[tokio::test]
async fn a_waiting_client_is_told_of_a_refusal() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(&folder, 10);
    let refusal =
        Refusal { status: 502, text: "no".to_owned(), retry_after_s: None, is_told: false };
    let waiting = tokio::spawn({
        let output = Arc::clone(&output);
        async move { output.opening().await }
    });
    output.end(End::Broken(refusal.clone()));
    let Opening::Refused(told) = waiting.await.unwrap() else { panic!("no refusal") };
    assert_eq!(told, refusal);
}

#[tokio::test]
async fn a_stream_that_nobody_follows_is_not_shown_and_may_start_over() {
    let folder = tempfile::tempdir().unwrap();
    let output = Arc::new(Output::new(folder.path().join("one"), 1000));
    output.begin(head());
    output.push(Bytes::from_static(b"first try")).await.unwrap();
    output.show();
    assert!(!output.is_shown());
    output.start_over(Timings::default());
    assert_eq!(output.bytes(), 0);
}

fn attempt(number: i64) -> Timings {
    Timings { attempt: number, ..Timings::default() }
}

/// An async job is tried again though its answer was shown: who follows the first attempt gets no byte of the second.
#[tokio::test]
async fn a_replaced_attempt_cuts_its_followers_and_the_next_one_has_its_own_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let output = Arc::new(Output::new(folder.path().join("one"), 10_000_000));
    output.take_off(1, true);
    output.start_over(attempt(1));
    output.begin(head());
    output.push(Bytes::from_static(b"first")).await.unwrap();
    output.show();
    let mut follower = Follower::behind(Arc::clone(&output), 1, 2).unwrap();
    assert_eq!(follower.next().await, Next::Bytes(Bytes::from_static(b"rst")));
    output.put_back();
    let Next::End(End::Broken(refusal)) = follower.next().await else { panic!("not cut") };
    assert!(refusal.text.contains("attempt 1"), "{}", refusal.text);
    output.take_off(2, true);
    output.start_over(attempt(2));
    output.begin(head());
    output.push(Bytes::from_static(b"second")).await.unwrap();
    output.show();
    assert!(matches!(follower.next().await, Next::End(End::Broken(_))));
    output.end(End::Whole);
    let mut second = Follower::new(Arc::clone(&output), 2);
    assert_eq!(second.next().await, Next::Bytes(Bytes::from_static(b"second")));
    assert_eq!(second.next().await, Next::End(End::Whole));
    assert_eq!(Follower::behind(Arc::clone(&output), 2, 7).unwrap_err(), BeyondEnd(6));
}

/// The blocking write of an attempt that was cut may end after the next one has begun.
#[tokio::test]
async fn a_late_write_of_a_replaced_attempt_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let output = Arc::new(Output::new(folder.path().join("one"), 10_000_000));
    output.take_off(1, true);
    output.start_over(attempt(1));
    output.take_off(2, true);
    output.start_over(attempt(2));
    output.begin(head());
    output.push(Bytes::from_static(b"second")).await.unwrap();
    output.spill(1, b"late").unwrap();
    output.end(End::Whole);
    assert_eq!(output.in_memory(), Some(Bytes::from_static(b"second")));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The same where the next attempt has a file already: the late bytes stood in the middle of its answer.
#[tokio::test]
async fn a_late_write_of_a_replaced_attempt_is_not_in_the_file_of_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let output = Arc::new(Output::new(folder.path().join("one"), 10_000_000));
    output.take_off(2, true);
    output.start_over(attempt(2));
    let large = Bytes::from(vec![b'2'; 2 * 1024 * 1024]);
    output.push(large.clone()).await.unwrap();
    output.spill(1, b"late").unwrap();
    assert!(std::fs::read(output.file_path()).unwrap() == large);
}

/// The first write of a large answer may end after its job has: nobody would have removed the file it made.
#[tokio::test]
async fn a_late_write_of_an_answer_that_is_not_kept_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let output = Arc::new(Output::new(folder.path().join("one"), 10_000_000));
    output.take_off(1, true);
    output.start_over(attempt(1));
    output.discard_file();
    output.spill(1, b"late").unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// What came of an attempt that is void was held until the next one began: of each job that waits for another try a
/// megabyte in memory, and a file that stayed where the job was cancelled instead.
#[tokio::test]
async fn a_job_that_waits_for_another_try_holds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for is_async in [false, true] {
        let output = Arc::new(Output::new(folder.path().join("one"), 10_000_000));
        output.take_off(1, is_async);
        output.start_over(attempt(1));
        output.begin(head());
        for _ in 0..3 {
            output.push(Bytes::from(vec![b'x'; 1024 * 1024])).await.unwrap();
        }
        output.show();
        assert!(output.file_path().exists());
        output.put_back();
        assert_eq!((output.bytes(), output.in_memory()), (0, Some(Bytes::new())));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// A follower whose attempt was replaced right before it began was told that the answer is not as long.
#[tokio::test]
async fn an_offset_into_a_replaced_attempt_is_told_as_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let output = Arc::new(Output::new(folder.path().join("x"), 100));
    output.take_off(2, true);
    let mut follower = Follower::behind(Arc::clone(&output), 1, 50).unwrap();
    let Next::End(End::Broken(refusal)) = follower.next().await else { panic!("it goes on") };
    assert!(refusal.text.contains("attempt 1 ended"), "{}", refusal.text);
    assert_eq!(Follower::behind(output, 2, 50).unwrap_err(), BeyondEnd(0));
}
