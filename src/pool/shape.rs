//! What a prepared statement takes and returns, as far as a client may rely on it (manual, 55.7: ParameterDescription, RowDescription).

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::wire::frontend::c_string;

/// A digest of it: of what the server compares before it says "cached plan must not change result type", the names, types and type
/// modifiers of columns, and of the types of parameters, by which it reads what the client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Unknown where only a portal was described.
    parameters: Option<u64>,
    row: u64,
}

impl Shape {
    /// From the bodies of a ParameterDescription, if there was one, and of the RowDescription behind it; none for NoData. `None` if they
    /// can't be read.
    pub fn of(parameters: Option<&[u8]>, row: Option<&[u8]>) -> Option<Shape> {
        let parameters = parameters.map(|body| {
            let mut digest = DefaultHasher::new();
            body.hash(&mut digest);
            digest.finish()
        });
        let mut digest = DefaultHasher::new();
        if let Some(row) = row {
            let (count, mut rest) = row.split_first_chunk()?;
            let count = u16::from_be_bytes(*count);
            count.hash(&mut digest);
            for _ in 0..count {
                let (name, behind) = c_string(rest)?;
                // Table (4) and column (2) it comes from, type (4), its length (2) and modifier (4), format (2).
                let (field, behind) = behind.split_at_checked(18)?;
                name.hash(&mut digest);
                field[6..10].hash(&mut digest);
                field[12..16].hash(&mut digest);
                rest = behind;
            }
        }
        Some(Shape {
            parameters,
            row: digest.finish(),
        })
    }

    /// Whether one may stand for the other, as far as both are known.
    pub fn agrees_with(self, other: Shape) -> bool {
        let same_parameters =
            self.parameters == other.parameters || self.parameters.is_none() || other.parameters.is_none();
        self.row == other.row && same_parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[(&str, u32, u32)]) -> Vec<u8> {
        let mut body = (columns.len() as u16).to_be_bytes().to_vec();
        for (name, table, data_type) in columns {
            body.extend_from_slice(name.as_bytes());
            body.push(0);
            body.extend_from_slice(&table.to_be_bytes());
            body.extend_from_slice(&[0, 1]);
            body.extend_from_slice(&data_type.to_be_bytes());
            body.extend_from_slice(&[0, 4, 255, 255, 255, 255, 0, 0]);
        }
        body
    }

    #[test]
    fn what_a_client_relies_on_makes_a_difference_and_nothing_else() {
        let shape = |parameters: &[u8], columns: &[(&str, u32, u32)]| Shape::of(Some(parameters), Some(&row(columns)));
        let agree = |a: Option<Shape>, b: Option<Shape>| a.expect("a shape").agrees_with(b.expect("a shape"));
        let base = shape(&[0, 0], &[("a", 1, 23), ("b", 1, 25)]);
        assert!(
            agree(base, shape(&[0, 0], &[("a", 2, 23), ("b", 2, 25)])),
            "another table"
        );
        assert!(agree(base, Shape::of(None, Some(&row(&[("a", 1, 23), ("b", 1, 25)])))));
        for other in [
            shape(&[0, 0], &[("a", 1, 20), ("b", 1, 25)]),
            shape(&[0, 0], &[("c", 1, 23), ("b", 1, 25)]),
            shape(&[0, 0], &[("a", 1, 23)]),
            shape(&[0, 1, 0, 0, 0, 23], &[("a", 1, 23), ("b", 1, 25)]),
            Shape::of(Some(&[0, 0]), None),
            Shape::of(None, None),
        ] {
            assert!(!agree(base, other));
        }
        assert_eq!(Shape::of(None, Some(&row(&[("a", 1, 23)])[..9])), None);
    }
}
