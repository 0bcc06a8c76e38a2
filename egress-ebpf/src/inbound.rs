//! Connections that came in to pods: their replies go back the way they came.
