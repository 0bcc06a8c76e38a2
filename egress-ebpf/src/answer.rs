//! What senders are told of packets that could not be sent on.
