use super::*;

/// What a request has, as `name: value`; every other command says its own name.
struct Known(&'static [(&'static str, &'static str)]);

impl Facts for Known {
    fn say(&self, command: &Command, out: &mut Vec<u8>) {
        let first = |name: &str| self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        match command {
            Command::Request(name, other) => {
                let found = first(name).or_else(|| other.as_deref().and_then(first));
                out.extend_from_slice(found.unwrap_or_default().as_bytes());
            }
            Command::DownstreamRemote(Of::Port) => {}
            other => out.extend_from_slice(format!("<{other:?}>").as_bytes()),
        }
    }
}

fn read(text: &str) -> HeaderText {
    HeaderText::read(text, Edited::Request).unwrap_or_else(|why| panic!("{text}: {why}"))
}

fn value(text: &str) -> String {
    let known = Known(&[("x-a", "first"), ("x-a", "second"), (":path", "/p?q"), ("x-long", "0123456789")]);
    match read(text) {
        HeaderText::Plain(plain) => plain,
        HeaderText::Format(format) => String::from_utf8(format.value(&known)).unwrap(),
    }
}

#[test]
fn commands_stand_for_what_is_known() {
    for (text, wanted) in [
        ("plain", "plain"),
        ("", ""),
        ("100%%", "100%"),
        ("%%REQ(x-a)%%", "%REQ(x-a)%"),
        ("%REQ(x-a)%", "first"),
        ("%REQ(X-A)%", "first"),
        ("%REQ(:PATH)%", "/p?q"),
        ("%REQ(x-b?x-a)%", "first"),
        ("%REQ(x-b?x-c)%", ""),
        ("%REQ(x-long):4%", "0123"),
        ("%REQ(x-long):40%", "0123456789"),
        ("a %REQ(x-a)%%REQ(x-a)%%%b", "a firstfirst%b"),
        ("%DOWNSTREAM_REMOTE_PORT%", ""),
        ("%PROTOCOL%", "<Protocol>"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "<DownstreamRemote(Host)>"),
        ("%START_TIME(%s)%", "<StartTime(\"%s\")>"),
        ("%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%", "<StartTime(\"%Y-%m-%dT%H:%M:%S.%3fZ\")>"),
    ] {
        assert_eq!(value(text), wanted, "{text}");
    }
    assert_eq!(value("%START_TIME%"), value("%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%"));
}

#[test]
fn what_is_written_has_no_blanks_around_it_and_is_not_nothing() {
    let known = Known(&[("x-a", "first")]);
    let written =
        |text: &str| read(text).value(&known).map(|value| String::from_utf8(value.into_owned()).unwrap());
    assert_eq!(written("of %REQ(x-b)%").as_deref(), Some("of"));
    assert_eq!(written("%REQ(x-b)% %REQ(x-a)%").as_deref(), Some("first"));
    assert_eq!((written("%REQ(x-b)%"), written("%REQ(x-b)% ")), (None, None));
    assert_eq!(written("").as_deref(), Some(""), "a text is written as it stands");
}

#[test]
fn what_is_no_command_here_is_refused_by_name() {
    let many = "%PROTOCOL%".repeat(MOST + 1);
    let long = format!("%PROTOCOL%{}", "x".repeat(LONGEST));
    for (text, told) in [
        ("50%", "one by itself is %%"),
        ("5 % of it", "one by itself is %%"),
        ("%req(x-a)%", "one by itself is %%"),
        ("%REQ(x-a)", "%REQ(x-a)% has no % at its end"),
        ("%REQ(x-a", "%REQ( has no end"),
        ("%REQ%", "%REQ% needs a header"),
        ("%REQ()%", "\"\" is not the name of a header"),
        ("%REQ(a b)%", "\"a b\" is not the name of a header"),
        ("%REQ(a?)%", "\"\" is not the name of a header"),
        ("%REQ(x-a):0%", "must be a number above 0"),
        ("%REQ(x-a):x%", "must be a number above 0"),
        ("%PROTOCOL(x)%", "takes no argument"),
        ("%START_TIME(%Q)%", "%Q is no part of a time"),
        ("%START_TIME(%)%", "is no part of a time"),
        ("%ENVIRONMENT(HOME)%", "%ENVIRONMENT% is no command"),
        ("%DYNAMIC_METADATA(a:b)%", "%DYNAMIC_METADATA% is no command"),
        ("%NOTHING%", "%NOTHING% is no command"),
        ("%DURATION%", "%DURATION% is known only when a request is over"),
        ("%UPSTREAM_HOST%", "%UPSTREAM_HOST% is for headers of responses"),
        ("%RESPONSE_FLAGS%", "%RESPONSE_FLAGS% is for headers of responses"),
        ("%RESP(x-a)%", "%RESP% is for headers of responses"),
        (&many, "more than 32 commands"),
        (&long, "at most 4096"),
    ] {
        let why = HeaderText::read(text, Edited::Request).unwrap_err();
        assert!(why.contains(told), "{text}: {why}");
    }
    for text in ["%UPSTREAM_HOST%", "%RESPONSE_FLAGS%", "%RESP(x-a?:status)%", "%REQ(x-a)%"] {
        assert!(HeaderText::read(text, Edited::Response).is_ok(), "{text}");
    }
}

#[test]
fn a_value_is_written_as_it_was_read() {
    for text in ["plain", "100%%", "a%REQ(x?y):9%b%%", "%%%PROTOCOL%", ""] {
        let read = read(text);
        assert_eq!(read.written(), text);
        let json = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<HeaderText>(&json).unwrap(), read, "{json}");
    }
    assert_eq!(serde_json::to_string(&read("100%%")).unwrap(), "\"100%\"");
    assert_eq!(serde_json::to_string(&read("%PROTOCOL%")).unwrap(), "{\"format\":\"%PROTOCOL%\"}");
    assert!(serde_json::from_str::<HeaderText>("{\"format\":\"%NO%\"}").is_err());
    assert_eq!(serde_json::from_str::<HeaderText>("\"50%\"").unwrap(), HeaderText::from("50%"));
}
