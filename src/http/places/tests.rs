//! Tests of the places: who gives way, who never does, and what large heads may take.

use super::files::PLACES_MIN;
use super::*;

/// The connections of a crowd that fills all places.
fn full(places: &Arc<Places>) -> Vec<Place> {
    std::iter::from_fn(|| places.take(Outflow::default())).collect()
}

fn gave_way(place: &Place) -> bool {
    place.0.standing.given_up.is_cancelled()
}

/// Which of the connections gave way, and frees their places.
fn leave(crowd: &mut Vec<Place>, numbers: &mut Vec<usize>) -> Vec<usize> {
    let gone: Vec<usize> = (0..crowd.len()).filter(|&at| gave_way(&crowd[at])).collect();
    let left = gone.iter().map(|&at| numbers[at]).collect();
    for at in gone.into_iter().rev() {
        crowd.remove(at);
        numbers.remove(at);
    }
    left
}

#[tokio::test(start_paused = true)]
async fn who_has_done_nothing_for_the_longest_gives_way_and_whoever_waits_never_does() {
    let places = Places::new(3);
    let mut crowd = full(&places);
    let mut numbers: Vec<usize> = (0..crowd.len()).collect();
    assert_eq!(crowd.len(), 3 + SPARE);
    let seats: Vec<Seat> = crowd.iter().map(Place::seat).collect();
    // 0 waits for an answer, 1 has had one, 2 has begun a head: they are younger now than those who said nothing.
    let waiting = seats[0].serve();
    drop(seats[1].serve());
    seats[2].read(1).unwrap();
    let mut order = Vec::new();
    places.make_room();
    assert!(!crowd.iter().any(gave_way), "nobody has had time for a head yet");
    tokio::time::advance(IDLE_GRACE).await;
    for _ in 0..crowd.len() {
        places.make_room();
        // One at a time: whoever was told has to leave first.
        places.make_room();
        order.extend(leave(&mut crowd, &mut numbers));
    }
    let expected: Vec<usize> = (3..3 + SPARE).chain([1, 2]).collect();
    assert_eq!(order, expected);
    assert_eq!(numbers, [0], "who waits stays");
    drop(waiting);
    tokio::time::advance(IDLE_GRACE).await;
    places.make_room();
    assert_eq!(leave(&mut crowd, &mut numbers), [0]);
    assert_eq!(full(&places).len(), 3 + SPARE);
}

/// Who has not taken the end of an answer is waited for, but not for ever, and not at all where it was only refused.
#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_an_answer_gives_way_in_the_end_and_who_was_refused_at_once() {
    let places = Places::new(3);
    let [slow, stuck, refused] = [(); 3].map(|()| {
        let outflow = Outflow::default();
        let place = places.take(outflow.clone()).unwrap();
        let request = place.seat().serve();
        place.seat().let_in();
        drop(request);
        outflow.wrote(false);
        (place, outflow)
    });
    drop(refused.0.seat().serve());
    tokio::time::advance(IDLE_GRACE).await;
    places.make_room();
    assert!(gave_way(&refused.0), "nothing it was told is worth a place");
    drop(refused);
    for _ in 0..STUCK_GRACE.as_secs() {
        tokio::time::advance(Duration::from_secs(1)).await;
        slow.1.wrote(true);
        slow.1.wrote(false);
    }
    places.make_room();
    assert_eq!((gave_way(&slow.0), gave_way(&stuck.0)), (false, true));
}

/// Bytes that dribble make no connection younger.
#[tokio::test(start_paused = true)]
async fn a_head_is_as_old_as_its_first_byte() {
    let places = Places::new(1);
    let (dribbling, fresh) =
        (places.take(Outflow::default()).unwrap(), places.take(Outflow::default()).unwrap());
    dribbling.seat().read(1).unwrap();
    fresh.seat().read(1).unwrap();
    tokio::time::advance(IDLE_GRACE).await;
    dribbling.seat().read(1).unwrap();
    places.make_room();
    assert_eq!((gave_way(&dribbling), gave_way(&fresh)), (true, false));
}

#[tokio::test(start_paused = true)]
async fn an_upload_gives_way_only_if_it_crawls() {
    let places = Places::new(2);
    let (crawling, brisk) =
        (places.take(Outflow::default()).unwrap(), places.take(Outflow::default()).unwrap());
    let (crawl, brisk_one) = (crawling.seat(), brisk.seat());
    let _requests = (crawl.serve(), brisk_one.serve());
    let _uploads = (crawl.upload(), brisk_one.upload());
    let third = places.take(Outflow::default()).unwrap();
    assert_eq!(third.seat().serve().crowd(), Crowd::TooMany, "nobody has shown a pace yet");
    for _ in 0..UPLOAD_GRACE.as_secs() + 1 {
        tokio::time::advance(Duration::from_secs(1)).await;
        crawl.read(100).unwrap();
        brisk_one.read(64 * 1024).unwrap();
    }
    let request = third.seat().serve();
    assert_eq!(request.crowd(), Crowd::Fits);
    assert_eq!((gave_way(&crawling), gave_way(&brisk)), (true, false));
    let fourth = places.take(Outflow::default()).unwrap();
    assert_eq!(fourth.seat().serve().crowd(), Crowd::TooMany, "nobody else crawls");
}

#[test]
fn large_heads_have_a_budget_and_small_ones_do_not_need_it() {
    const LARGE: usize = 64 * 1024;
    let places = Places::new(LARGE_HEADS_BYTES_MAX / (LARGE - HEAD_FREE_BYTES));
    let mut crowd = full(&places);
    let mut served = Vec::new();
    let refused = crowd.iter().position(|place| {
        let read = place.seat().read(LARGE);
        served.push(place.seat().serve());
        read.is_err()
    });
    let refused = refused.unwrap();
    assert_eq!(refused, LARGE_HEADS_BYTES_MAX / (LARGE - HEAD_FREE_BYTES));
    crowd.last().unwrap().seat().read(HEAD_FREE_BYTES).unwrap();
    // It is given back with the answer, and with the connection.
    drop(served.remove(0));
    crowd[refused + 1].seat().read(LARGE).unwrap();
    assert!(crowd[refused + 2].seat().read(LARGE).is_err());
    drop(served);
    crowd.clear();
    assert_eq!(places.lock().large_heads_bytes, 0);
}

#[test]
fn open_files_bound_the_places() {
    assert_eq!(allowed(16_384, 65_536), 16_384);
    assert_eq!(allowed(16_384, 20_000), 14_680);
    assert_eq!(allowed(16_384, 1_024), 448);
    assert_eq!((allowed(16_384, 64), allowed(4, 65_536)), (PLACES_MIN, 4));
}
