-- A machine whose answer is lost asks again with the same token and key, and is the same node.

alter table nodes add column key_hash text; -- BLAKE3 of the public key that it enrolled with
