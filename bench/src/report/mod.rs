//! What the reader gets: a table, a file, pictures.

mod json;
mod picture;
mod table;

pub(crate) use self::{
    json::write as write_json,
    picture::draw,
    table::{figures, gates},
};
