//! Those who break the rules, and what breaks in the middle.

use super::*;

fn seed(object: u64, offset: u64, len: usize, prefix: u64) -> Seed {
    Seed { place: Place { object, offset }, len: u32::try_from(len).unwrap(), prefix }
}

/// A sender of this node that reseeds, and a receiver that says what it is told, having offered references.
fn rogue_receiver(
    options: SendOptions,
) -> (Rogue, thread::JoinHandle<Result<SendReport, SendError>>) {
    let (a, b, _) = memory::pair();
    let sender = BulkSender::over(a, node(false)).to_peer(RECEIVER);
    let read = Cursor::new(plain(&blocks(64, 64 << 10)));
    let sending =
        thread::spawn(move || send_stream(read, |_| Ok(()), sender, options, &Progress::default()));
    let mut rogue = Rogue::on(b);
    let credit_bytes = u32::try_from(MIN_CREDIT).unwrap();
    let offer = CacheOffer { id: [0; 16], window_bytes: 0, credit_bytes };
    rogue.say(FrameType::Cache, &offer.encode());
    (rogue, sending)
}

fn send_error(
    rogue: Rogue,
    sending: thread::JoinHandle<Result<SendReport, SendError>>,
) -> SendError {
    let result = sending.join().unwrap();
    drop(rogue);
    result.unwrap_err()
}

#[test]
fn a_receiver_that_announces_too_much_or_backwards_ends_the_transfer() {
    let many: Vec<Seed> =
        (0..=SEED_WINDOW / MAX_SEED).map(|n| seed(9, n as u64, MAX_SEED, n as u64)).collect();
    let over = Seeds { reached: Place { object: 9, offset: 1 << 40 }, seeds: many };
    let (mut rogue, sending) = rogue_receiver(patient());
    rogue.say(FrameType::Seeds, &over.encode());
    let SendError::Dedup { source } = send_error(rogue, sending) else { panic!("another error") };
    assert_eq!(source, DedupError::OverAnnounced { limit: SEED_WINDOW });
    let word = |object| Seeds { reached: Place { object, offset: 0 }, seeds: vec![] }.encode();
    let ended = Seeds { reached: Place::END, seeds: vec![] }.encode();
    let half = Seeds {
        reached: Place { object: 1, offset: 1 << 20 },
        seeds: vec![seed(1, 0, 64 << 10, 5)],
    };
    for (first, second) in
        [(word(1), word(0)), (half.encode(), half.encode()), (ended.clone(), ended)]
    {
        let (mut rogue, sending) = rogue_receiver(patient());
        rogue.say(FrameType::Seeds, &first);
        rogue.say(FrameType::Seeds, &second);
        let SendError::Dedup { source } = send_error(rogue, sending) else { panic!("another") };
        assert_eq!(source, DedupError::AnnouncedBackwards);
    }
}

#[test]
fn announcements_that_nobody_agreed_on_may_not_come_and_neither_may_places() {
    let (mut rogue, sending) = rogue_receiver(SendOptions::default());
    rogue.say(FrameType::Seeds, &Seeds::default().encode());
    let SendError::Protocol { source } = send_error(rogue, sending) else { panic!("another") };
    assert!(matches!(source, FrameError::Unexpected { found: FrameType::Seeds, .. }), "{source}");
    let (a, b, _) = memory::pair();
    let received = receiving(BulkReceiver::over(b, node(true)).from_peer(SENDER), None);
    let mut rogue = Rogue::on(a);
    rogue.say(FrameType::Passed, &Passed { place: Place::END }.encode());
    let (_, result) = received.join().unwrap();
    let Err(ReceiveError::Protocol { source }) = result else { panic!("{result:?}") };
    assert!(matches!(source, FrameError::Unexpected { found: FrameType::Passed, .. }), "{source}");
}

#[test]
fn a_receiver_that_announces_what_it_has_not_gets_it_when_it_asks() {
    let (mut rogue, sending) = rogue_receiver(patient());
    let all = blocks(64, 64 << 10);
    let lies = all.iter().map(|(object, offset, number, len)| {
        let mut block = vec![0; *len];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut block);
        let hash = *blake3::hash(&block).as_bytes();
        seed(*object, *offset, *len, u64::from_le_bytes(*hash.first_chunk().unwrap()))
    });
    let seeds = Seeds { reached: Place::END, seeds: lies.collect() };
    rogue.say(FrameType::Seeds, &seeds.encode());
    // A batch of references alone: what is asked for is sent, not more.
    let seq = loop {
        let (kind, payload) = rogue.hear().expect("batches");
        if kind == FrameType::Batch {
            assert!(payload.len() < 8 << 10, "references, not data");
            let (head, body) = payload.split_first_chunk().unwrap();
            let head = frame::bulk::BatchHeader::decode(head, body.len()).unwrap();
            if head.encoding.has_recipe() {
                break head.seq;
            }
        }
    };
    rogue.say(FrameType::Missing, &Missing { seq, parts: vec![1] }.encode());
    loop {
        let (kind, payload) = rogue.hear().expect("blocks");
        if kind == FrameType::Blocks {
            assert_eq!(payload.len(), 8 + (64 << 10));
            break;
        }
    }
    let failed = frame::bulk::Failed { code: 1, reason: "enough".into() };
    rogue.say(FrameType::Failed, &failed.encode());
    assert!(matches!(send_error(rogue, sending), SendError::Refused { code: 1, .. }));
}

#[test]
fn a_promised_old_copy_that_is_never_spoken_of_is_waited_for_only_so_long() {
    let options = SendOptions { reseed: Some(Duration::from_millis(200)), ..patient() };
    let (mut rogue, sending) = rogue_receiver(options);
    let mut raw = 0;
    loop {
        match rogue.hear().expect("the whole stream") {
            (FrameType::Batch, payload) => raw += payload.len(),
            (FrameType::End, payload) => {
                let bytes = u64::from_le_bytes(*payload.first_chunk().unwrap());
                let done = frame::bulk::Done { raw_bytes: bytes };
                rogue.say(FrameType::Done, &done.encode());
                break;
            }
            (kind, _) => assert_eq!(kind, FrameType::Passed),
        }
    }
    assert!(raw > 64 * (64 << 10), "all of it was sent");
    assert_eq!(sending.join().unwrap().unwrap().saved_bytes, 0);
}

#[test]
fn a_sender_that_passes_everything_at_once_finds_nothing_and_harms_nobody() {
    let (a, b, _) = memory::pair();
    let old = plain(&blocks(1000, 64 << 10));
    let receiver = BulkReceiver::over(b, node(false)).from_peer(SENDER);
    let received = receiving(receiver, Some(OldCopy::new(Cursor::new(old))));
    let mut rogue = Rogue::on(a);
    for offset in [u64::MAX, 0, 7] {
        rogue
            .say(FrameType::Passed, &Passed { place: Place { object: u64::MAX, offset } }.encode());
    }
    let mut announced = 0;
    while let Some((kind, payload)) = rogue.hear() {
        if kind == FrameType::Seeds {
            let seeds = Seeds::decode(&payload).unwrap();
            announced += seeds.seeds.len();
            if seeds.reached == Place::END {
                break;
            }
        }
    }
    assert!(
        announced <= SEED_WINDOW / (64 << 10),
        "{announced}: no more than before it was passed"
    );
    drop(rogue);
    let (out, result) = received.join().unwrap();
    assert!(out.is_empty() && result.is_err());
}

#[test]
fn a_cut_in_the_middle_ends_both_sides_and_lets_go_of_the_old_copy() {
    struct Watched(Cursor<Vec<u8>>, Arc<AtomicBool>);
    impl Read for Watched {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf)
        }
    }
    impl Drop for Watched {
        fn drop(&mut self) {
            self.1.store(true, Ordering::SeqCst);
        }
    }
    let all = blocks(2000, 64 << 10);
    let stream = plain(&changed(&all, 3));
    let (a, b, cable) = memory::pair();
    let dropped = Arc::new(AtomicBool::new(false));
    let old = OldCopy::new(Watched(Cursor::new(plain(&all)), dropped.clone()));
    let received = receiving(BulkReceiver::over(b, node(false)).from_peer(SENDER), Some(old));
    let sender = BulkSender::over(a, node(false)).to_peer(RECEIVER);
    let progress = Arc::new(Progress::default());
    let watched = progress.clone();
    let sending = thread::spawn(move || {
        send_stream(Cursor::new(stream), |_| Ok(()), sender, patient(), &watched)
    });
    let started = std::time::Instant::now();
    while progress.saved_bytes() < 8 << 20 {
        assert!(started.elapsed() < PATIENCE, "nothing was referred to");
        thread::yield_now();
    }
    cable.cut();
    assert!(matches!(sending.join().unwrap(), Err(SendError::ConnectionLost { .. })));
    assert!(matches!(received.join().unwrap().1, Err(ReceiveError::ConnectionLost { .. })));
    while !dropped.load(Ordering::SeqCst) {
        assert!(started.elapsed() < PATIENCE, "the old copy is still read");
        thread::yield_now();
    }
}
