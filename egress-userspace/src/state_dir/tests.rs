#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use super::*;

#[test]
fn names_survive_and_a_second_agent_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b");
    let names = Arc::new(Names {
        policies: [("p".to_owned(), 1)].into_iter().collect(),

        ..Names::default()
    });
    let mut state = StateDir::open(&path).unwrap();
    state.keep_names(&names);
    assert!(format!("{:#}", StateDir::open(&path).unwrap_err()).contains("another agent"));
    drop(state);
    let state = StateDir::open(&path).unwrap();
    assert_eq!(state.names(), *names);
    assert!(state.remove().unwrap());
    assert!(!path.exists());
}

#[test]
fn what_others_keep_there_stays() {
    let directory = tempfile::tempdir().unwrap();
    let foreign = directory.path().join("foreign");
    fs::write(&foreign, b"kept").unwrap();
    let mut state = StateDir::open(directory.path()).unwrap();
    state.keep_names(&Arc::default());
    fs::write(unfinished(&names_file(directory.path())), b"").unwrap();
    state.address_book().keep(&BTreeSet::new()).unwrap();
    assert!(!state.remove().unwrap());
    assert_eq!(fs::read(&foreign).unwrap(), b"kept");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_lock_on_what_was_removed_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    fs::create_dir(&path).unwrap();
    let opened = File::open(&path).unwrap();
    fs::remove_dir(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = lock_for_one(opened, &path, &path, "--pin-dir").unwrap_err();
    assert!(error.to_string().contains("try again"), "{error:#}");
}

#[test]
fn the_book_of_addresses_is_of_this_boot() {
    let directory = tempfile::tempdir().unwrap();
    let book = StateDir::open(directory.path()).unwrap().address_book();
    assert_eq!(book.read().unwrap(), BTreeSet::new());
    let addresses = BTreeSet::from([Assigned {
        address: [192, 0, 2, 7].into(),
        ifindex: 3,
        interface: "eth0".to_owned(),
    }]);
    book.keep(&addresses).unwrap();
    assert_eq!(book.read().unwrap(), addresses);

    let file = addresses_file(directory.path());
    let page = fs::read_to_string(&file).unwrap();
    fs::write(&file, page.replace(&boot().unwrap(), "another")).unwrap();
    assert_eq!(book.read().unwrap(), BTreeSet::new());
    fs::write(&file, b"{").unwrap();
    assert!(book.read().is_err(), "what is ours is not known then");
}

#[test]
fn what_is_broken_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut state = StateDir::open(path).unwrap();
    state.keep_names(&Arc::default());
    state.set_aside_broken();
    assert_eq!(state.faults().all(), [].into());
    fs::write(names_file(path), b"\0\0").unwrap();
    fs::write(addresses_file(path), b"").unwrap();
    fs::create_dir_all(state.overlay_file().join("x")).unwrap();
    state.set_aside_broken();
    let broken: Vec<_> = state.faults().all().into_keys().collect();
    let expected = [addresses_file(path), names_file(path), state.overlay_file()];
    assert_eq!(broken, expected);
    assert_eq!(state.address_book().read().unwrap(), BTreeSet::new());
    state.keep_names(&Arc::default());
    assert_eq!(state.faults().all().len(), 3, "what was lost stays lost");
    fs::remove_dir_all(path.join("overlay.broken")).unwrap();
    assert!(state.remove().unwrap(), "what was set aside goes, too");
}

#[test]
fn what_cannot_be_written_stops_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    // Root may write everywhere, but not over directories.
    fs::create_dir_all(lock_file(path).join("x")).unwrap();
    fs::create_dir_all(unfinished(&names_file(path)).join("x")).unwrap();
    fs::write(names_file(path), b"{}").unwrap();
    let mut state = StateDir::open(path).unwrap();
    assert!(StateDir::open(path).is_err(), "it is locked all the same");
    state.keep_names(&Arc::default());
    assert!(!names_file(path).exists(), "the old names count for others");
    assert_eq!(state.faults().all().len(), 2);
    fs::remove_dir_all(unfinished(&names_file(path))).unwrap();
    state.keep_names(&Arc::default());
    assert_eq!(state.faults().all().len(), 1);
}

#[test]
fn a_broken_file_costs_the_names_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(names_file(directory.path()), b"{").unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    assert_eq!(state.names(), Names::default());
}
