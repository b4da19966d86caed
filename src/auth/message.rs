//! The messages of an authentication exchange, as bytes. Pure. Manual: "Message Formats", section 55.7.

/// AuthenticationRequest's kinds that are known here.
pub(super) mod request {
    pub(crate) const OK: i32 = 0;
    pub(crate) const CLEARTEXT: i32 = 3;
    pub(crate) const MD5: i32 = 5;
    pub(crate) const SASL: i32 = 10;
    pub(crate) const SASL_CONTINUE: i32 = 11;
    pub(crate) const SASL_FINAL: i32 = 12;
}

/// Appends an AuthenticationRequest (`R`).
pub(super) fn put_request(kind: i32, data: &[u8], out: &mut Vec<u8>) {
    put_message(b'R', &[&kind.to_be_bytes(), data], out);
}

/// Appends a PasswordMessage (`p`).
pub(super) fn put_password(password: &str, out: &mut Vec<u8>) {
    put_message(b'p', &[password.as_bytes(), &[0]], out);
}

/// Appends a SASLInitialResponse (`p`).
pub(super) fn put_sasl_initial(mechanism: &str, data: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(data.len()).expect("SASL messages are short");
    put_message(b'p', &[mechanism.as_bytes(), &[0], &length.to_be_bytes(), data], out);
}

/// Appends a SASLResponse (`p`).
pub(super) fn put_sasl_response(data: &[u8], out: &mut Vec<u8>) {
    put_message(b'p', &[data], out);
}

fn put_message(tag: u8, parts: &[&[u8]], out: &mut Vec<u8>) {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    out.push(tag);
    out.extend(
        u32::try_from(4 + body)
            .expect("messages of a login are short")
            .to_be_bytes(),
    );
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// A PasswordMessage's text, which ends with its only zero byte.
pub(super) fn password(body: &[u8]) -> Option<&[u8]> {
    let (last, text) = body.split_last()?;
    (*last == 0 && !text.contains(&0)).then_some(text)
}

/// A SASLInitialResponse's mechanism and data. `None` if it is malformed, or has no data: the one mechanism that we offer begins
/// with the client.
pub(super) fn sasl_initial(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = body.iter().position(|byte| *byte == 0)?;
    let (length, data) = body[end + 1..].split_first_chunk::<4>()?;
    (usize::try_from(u32::from_be_bytes(*length)).ok()? == data.len()).then_some((&body[..end], data))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use pgwire::messages::startup::{Authentication, PasswordMessageFamily};
    use pgwire::messages::{DecodeContext, Message};
    use proptest::prelude::*;

    use super::*;

    fn made(put: impl FnOnce(&mut Vec<u8>)) -> BytesMut {
        let mut bytes = Vec::new();
        put(&mut bytes);
        BytesMut::from(&bytes[..])
    }

    #[test]
    fn requests_are_what_another_implementation_reads() {
        let cases = [
            (request::OK, &b""[..], Authentication::Ok),
            (request::CLEARTEXT, b"", Authentication::CleartextPassword),
            (
                request::MD5,
                b"\x01\x02\x03\x04",
                Authentication::MD5Password(vec![1, 2, 3, 4]),
            ),
            (
                request::SASL,
                b"SCRAM-SHA-256\0\0",
                Authentication::SASL(vec!["SCRAM-SHA-256".to_owned()]),
            ),
            (
                request::SASL_CONTINUE,
                b"r=a",
                Authentication::SASLContinue(b"r=a"[..].into()),
            ),
            (
                request::SASL_FINAL,
                b"v=a",
                Authentication::SASLFinal(b"v=a"[..].into()),
            ),
        ];
        for (kind, data, expected) in cases {
            let mut bytes = made(|out| put_request(kind, data, out));
            assert_eq!(
                Authentication::decode(&mut bytes, &DecodeContext::default()).unwrap(),
                Some(expected)
            );
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn responses_are_what_another_implementation_reads() {
        let decode = |mut bytes: BytesMut| {
            PasswordMessageFamily::decode(&mut bytes, &DecodeContext::default())
                .unwrap()
                .unwrap()
        };
        let sent = decode(made(|out| put_password("secret", out))).into_password().unwrap();
        assert_eq!(sent.password, "secret");
        let sent = decode(made(|out| put_sasl_initial("M", b"n,,", out)))
            .into_sasl_initial_response()
            .unwrap();
        assert_eq!((&*sent.auth_method, sent.data.as_deref()), ("M", Some(&b"n,,"[..])));
        let sent = decode(made(|out| put_sasl_response(b"c=", out)))
            .into_sasl_response()
            .unwrap();
        assert_eq!(sent.data, &b"c="[..]);
    }

    #[test]
    fn what_is_sent_is_what_is_read() {
        assert_eq!(
            sasl_initial(&made(|out| put_sasl_initial("M", b"n,,", out))[5..]),
            Some((&b"M"[..], &b"n,,"[..]))
        );
        assert_eq!(
            password(&made(|out| put_password("secret", out))[5..]),
            Some(&b"secret"[..])
        );
        for malformed in [&b""[..], b"secret", b"a\0b\0"] {
            assert_eq!(password(malformed), None);
        }
        for malformed in [&b""[..], b"M", b"M\0", b"M\0\0\0\0\x02a", b"M\0\xff\xff\xff\xff"] {
            assert_eq!(sasl_initial(malformed), None);
        }
    }

    proptest! {
        #[test]
        fn any_body_is_read_without_panic(body in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = (password(&body), sasl_initial(&body));
        }
    }
}
