//! Signatures of images as sigstore's cosign makes them with a key of one's own.
//!
//! ```text
//! image      registry/repository@sha256:HEX
//! signatures registry/repository:sha256-HEX.sig     a manifest; each of its layers is one signature:
//!              annotation dev.cosignproject.cosign/signature   base64, over the layer's content byte for byte
//!              content: { critical: { identity: { docker-reference }, image: { docker-manifest-digest }, type } }
//! ```
//! Keys are ECDSA on P-256 (with SHA-256) or Ed25519, as PEM files of type PUBLIC KEY. What is fetched is a stranger's until a key
//! has verified it: number and size are bounded, and nothing is read of a payload before its signature held.
//!
//! Left out: certificates and transparency logs (keyless signing), other curves, RSA.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_proto::id::Digest;
use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::error::{Cause, PullError};
use super::hash;
use super::json;
use super::reference::Reference;
use super::registry::Repository;

/// Most signatures of one image that are looked at.
const MAX_SIGNATURES: usize = 32;

/// Largest payload, in bytes; cosign's have a few hundred.
const MAX_PAYLOAD: usize = 16 << 10;

/// The annotation that holds a signature.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// What a layer of a signature's manifest is.
const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// What a payload says it is.
const SIGNED_TYPE: &str = "cosign container image signature";

/// A signature as it was fetched, whether or not it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// What is signed, base64.
    payload: String,
    /// Over the payload's bytes, base64.
    signature: String,
}

/// A public key.
pub(super) struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
}

/// The DER of a key of each kind before the key itself (RFC 5480, RFC 8410), and the key's length.
const P256: (&[u8], usize) = (
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00",
    65,
);
const EDWARDS: (&[u8], usize) = (b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", 32);

impl Key {
    /// Reads a PEM file's content.
    pub(super) fn parse(pem: &[u8]) -> Result<Key, String> {
        let der =
            SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|error| format!("no public key in PEM: {error}"))?;
        let kinds: [(_, &'static dyn VerificationAlgorithm); 2] =
            [(P256, &ECDSA_P256_SHA256_ASN1), (EDWARDS, &ED25519)];
        for ((prefix, length), algorithm) in kinds {
            if let Some(bytes) = der.strip_prefix(prefix).filter(|bytes| bytes.len() == length) {
                let bytes = bytes.to_vec();
                return Ok(Key { algorithm, bytes });
            }
        }
        Err("must be an ECDSA P-256 or an Ed25519 key".to_owned())
    }

    fn holds(&self, payload: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(self.algorithm, &self.bytes);
        key.verify(payload, signature).is_ok()
    }
}

/// What must have been signed.
pub(super) struct Subject<'a> {
    /// The manifest's or index's digest.
    pub(super) digest: &'a Digest,
    /// The repository that the signature must name; any if there is none.
    pub(super) identity: Option<&'a str>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Identity,
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Whether one of `signatures` is one of `keys`' over `subject`; otherwise why each of them is not.
pub(super) fn verify(signatures: &[Signature], keys: &[Key], subject: &Subject<'_>) -> Result<(), String> {
    if signatures.is_empty() {
        return Err(format!("{} has no signature", subject.digest));
    }
    let mut reasons = Vec::new();
    for signature in signatures {
        match verify_one(signature, keys, subject) {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(reason),
        }
    }
    let (count, reasons) = (reasons.len(), reasons.join("; "));
    Err(format!(
        "none of {count} signatures of {} holds: {reasons}",
        subject.digest
    ))
}

fn verify_one(signature: &Signature, keys: &[Key], subject: &Subject<'_>) -> Result<(), String> {
    let payload = STANDARD
        .decode(&signature.payload)
        .map_err(|error| format!("payload: {error}"))?;
    let bytes = STANDARD
        .decode(&signature.signature)
        .map_err(|error| format!("signature: {error}"))?;
    if !keys.iter().any(|key| key.holds(&payload, &bytes)) {
        return Err("made with none of the keys".to_owned());
    }
    let Payload { critical } = serde_json::from_slice(&payload).map_err(|error| format!("payload: {error}"))?;
    if critical.kind != SIGNED_TYPE {
        return Err(format!("payload of type {:?}", critical.kind));
    }
    if critical.image.digest != subject.digest.as_str() {
        return Err(format!("it is for {:?}", critical.image.digest));
    }
    let named = &critical.identity.reference;
    match subject.identity {
        Some(identity) if !is_of(named, identity) => Err(format!("it is for {named:?} and not {identity}")),
        _ => Ok(()),
    }
}

/// Whether a signature's reference, with or without tag and digest, names a repository.
fn is_of(reference: &str, repository: &str) -> bool {
    let parsed = reference.parse::<Reference>();
    parsed.is_ok_and(|reference| reference.name() == repository)
}

/// The signatures that a repository has for a digest; none if it has none.
pub(super) async fn fetch(repository: &Repository, digest: &Digest) -> Result<Vec<Signature>, PullError> {
    let tag = format!("{}.sig", digest.as_str().replacen(':', "-", 1));
    let content = match repository.manifest(&tag, |_, _| Ok(())).await {
        Ok((_, content)) => content,
        Err(error) if error.cause == Cause::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.context("signatures")),
    };
    let layers = parse(&content).map_err(|error| PullError::untrusted(format!("signatures {tag}: {error}")))?;
    let mut signatures = Vec::new();
    for layer in layers {
        let is_asked = |payload: &[u8]| hash::check(payload, &layer.digest);
        let payload = repository.whole(&layer.digest, MAX_PAYLOAD, is_asked).await;
        let payload = payload.map_err(|error| error.context(format!("signature {}", layer.digest)))?;
        signatures.push(Signature {
            payload: STANDARD.encode(payload),
            signature: layer.annotations.signature.unwrap_or_default(),
        });
    }
    Ok(signatures)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: Digest,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Debug, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "dev.cosignproject.cosign/signature")]
    signature: Option<String>,
}

/// The signatures of a manifest: those of its layers that are some.
fn parse(content: &[u8]) -> Result<Vec<Layer>, String> {
    #[derive(Deserialize)]
    struct Manifest {
        layers: Vec<Layer>,
    }
    let manifest: Manifest = json::parse(content).map_err(|error| error.to_string())?;
    let mut layers = manifest.layers;
    layers.retain(|layer| layer.media_type == PAYLOAD_TYPE);
    if layers.len() > MAX_SIGNATURES {
        return Err(format!("{} of them, at most {MAX_SIGNATURES}", layers.len()));
    }
    match layers.iter().find(|layer| is_too_long(layer)) {
        Some(layer) => Err(format!("{}: annotation {ANNOTATION} is too long", layer.digest)),
        None => Ok(layers),
    }
}

fn is_too_long(layer: &Layer) -> bool {
    let signature = layer.annotations.signature.as_deref();
    signature.is_some_and(|signature| signature.len() > MAX_PAYLOAD)
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use serde_json::{Value, json};

    use super::*;

    fn digest() -> Digest {
        Digest::from_sha256(&[7; 32])
    }

    fn payload() -> Value {
        json!({
            "critical": {
                "identity": { "docker-reference": "a.example/team/app" },
                "image": { "docker-manifest-digest": digest() },
                "type": SIGNED_TYPE,
            },
            "optional": null,
        })
    }

    fn pem(prefix: &[u8], key: &[u8]) -> String {
        let der = STANDARD.encode([prefix, key].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
    }

    fn signed(payload: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> Signature {
        let payload = payload.to_string();
        Signature {
            signature: STANDARD.encode(sign(payload.as_bytes())),
            payload: STANDARD.encode(payload),
        }
    }

    #[test]
    fn both_kinds_of_keys_verify_what_they_signed() {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let ecdsa = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let edwards = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let keys = [
            Key::parse(pem(P256.0, ecdsa.public_key().as_ref()).as_bytes()).unwrap(),
            Key::parse(pem(EDWARDS.0, edwards.public_key().as_ref()).as_bytes()).unwrap(),
        ];
        let by_ecdsa = signed(&payload(), |it| ecdsa.sign(&random, it).unwrap().as_ref().to_vec());
        let by_edwards = signed(&payload(), |it| edwards.sign(it).as_ref().to_vec());
        let digest = digest();
        let subject = Subject {
            digest: &digest,
            identity: Some("a.example/team/app"),
        };
        for (signature, own, other) in [(&by_ecdsa, 0, 1), (&by_edwards, 1, 0)] {
            let signatures = std::slice::from_ref(signature);
            assert_eq!(verify(signatures, &keys[own..=own], &subject), Ok(()));
            let error = verify(signatures, &keys[other..=other], &subject).unwrap_err();
            assert!(error.contains("none of the keys"), "{error}");
        }
        // One that holds is enough, whatever is around it.
        let junk = Signature {
            payload: "!".into(),
            signature: "!".into(),
        };
        assert_eq!(verify(&[junk, by_ecdsa, by_edwards], &keys[1..], &subject), Ok(()));
    }

    #[test]
    fn a_signature_holds_for_what_it_names_only() {
        let random = SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let keys = [Key::parse(pem(EDWARDS.0, pair.public_key().as_ref()).as_bytes()).unwrap()];
        let changed = |pointer: &str, value: &str| {
            let mut payload = payload();
            *payload.pointer_mut(pointer).unwrap() = value.into();
            signed(&payload, |it| pair.sign(it).as_ref().to_vec())
        };
        let name = "/critical/identity/docker-reference";
        let other = Digest::from_sha256(&[8; 32]);
        let (own, any) = (Some("a.example/team/app"), None);
        let table = [
            (changed(name, "a.example/team/app:1"), own, ""),
            (changed(name, &format!("a.example/team/app@{}", digest())), own, ""),
            (changed(name, "a.example/team/other"), own, "and not a.example/team/app"),
            (changed(name, "a.example/team/other"), any, ""),
            (changed(name, "?"), own, "and not a.example/team/app"),
            (
                changed("/critical/image/docker-manifest-digest", other.as_str()),
                any,
                "it is for",
            ),
            (changed("/critical/type", "other"), any, "payload of type"),
            (
                signed(&json!({}), |it| pair.sign(it).as_ref().to_vec()),
                any,
                "payload: ",
            ),
        ];
        let digest = digest();
        for (signature, identity, says) in table {
            let subject = Subject {
                digest: &digest,
                identity,
            };
            match verify(&[signature], &keys, &subject) {
                Ok(()) => assert_eq!(says, ""),
                Err(error) => assert!(!says.is_empty() && error.contains(says), "{error} should say {says:?}"),
            }
        }
        let subject = Subject {
            digest: &digest,
            identity: None,
        };
        assert!(verify(&[], &keys, &subject).unwrap_err().contains("has no signature"));
    }

    #[test]
    fn keys_that_are_none() {
        let short = pem(EDWARDS.0, &[1; 31]);
        let other = pem(b"\x30\x03", &[1]);
        for (text, says) in [
            ("", "no public key"),
            (
                "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
                "no public key",
            ),
            (short.as_str(), "must be an ECDSA P-256"),
            (other.as_str(), "must be an ECDSA P-256"),
        ] {
            let error = Key::parse(text.as_bytes()).err().expect("refused");
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn manifests_of_signatures_are_bounded() {
        let layer = |media_type: &str, signature: &str| json!({ "mediaType": media_type, "digest": digest(), "size": 1, "annotations": { ANNOTATION: signature } });
        let parse = |layers: Vec<Value>| super::parse(json!({ "layers": layers }).to_string().as_bytes());
        assert_eq!(
            parse(vec![layer(PAYLOAD_TYPE, "a"), layer("other", "b")])
                .unwrap()
                .len(),
            1
        );
        assert!(
            parse(vec![layer(PAYLOAD_TYPE, "a"); 33])
                .unwrap_err()
                .contains("at most 32")
        );
        let long = "a".repeat(20_000);
        assert!(
            parse(vec![layer(PAYLOAD_TYPE, &long)])
                .unwrap_err()
                .contains("too long")
        );
        assert!(super::parse(b"[]").is_err());
    }
}
