//! Webhooks that are owed, delivered or given up: listed, and sent again by hand.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::domain::job::JobId;
use crate::store::{DeliveryState, DeliveryView, Resending, WhichDeliveries};

use super::super::caller::Caller;
use super::super::problem::{Code, Problem};
use super::super::query;
use super::super::{Edge, Response};
use super::act::without_body;
use super::submit::require;
use super::{document, unread};

const LIMIT_DEFAULT: u32 = 20;
const LIMIT_MAX: u32 = 100;

/// Dead deliveries sent again by one call, over several writes; `has_more` says that there are more.
const COUNT_MAX: usize = 10_000;

/// `GET /deliveries`, and `GET /jobs/{id}/deliveries`.
pub(super) async fn list(
    edge: &Edge,
    caller: &Caller,
    of: Option<JobId>,
    query: Option<&str>,
) -> Result<Response, Problem> {
    let names = DeliveryState::ALL.map(DeliveryState::name).join(", ");
    let (state, after, limit) = query::read(query, |given| {
        let state = given.parsed::<ByName>("state", &format!("one of {names}"));
        let after = given.parsed::<u64>("after", "the id of a delivery");
        (state, after, given.limit("limit", LIMIT_MAX).unwrap_or(LIMIT_DEFAULT))
    })?;
    if let Some(id) = of {
        require(edge, id).await?;
    }
    let state = state.map(|ByName(state)| state);
    let which = WhichDeliveries { of, state, owner: caller.sees_only() };
    let after = after.map(|after| i64::try_from(after).unwrap_or(i64::MAX));
    let deliveries_max = usize::try_from(limit).unwrap_or(usize::MAX);
    let page = edge.store.deliveries(which, after, deliveries_max).await;
    let page = page.map_err(|fault| unread(edge, &fault))?;
    let data: Vec<Value> = page.deliveries.iter().map(object).collect();
    let value = json!({ "object": "list", "data": data, "has_more": page.has_more });
    Ok(document(StatusCode::OK, &value))
}

/// A state by its name.
struct ByName(DeliveryState);

impl std::str::FromStr for ByName {
    type Err = ();

    fn from_str(name: &str) -> Result<ByName, ()> {
        DeliveryState::from_name(name).map(ByName).ok_or(())
    }
}

fn object(delivery: &DeliveryView) -> Value {
    json!({
        "object": "delivery",
        "delivery_id": delivery.event,
        "job_id": delivery.id.to_string(),
        "sequence": delivery.sequence,
        "type": format!("job.{}", delivery.to.name()),
        "url": delivery.url,
        "state": delivery.state.name(),
        "tries": delivery.tries,
        "next_try_at": delivery.next_at_ms.map(rfc3339),
        "delivered_at": delivery.delivered_at_ms.map(rfc3339),
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
    })
}

/// `POST /deliveries/{delivery_id}/resend`.
pub(super) async fn resend(
    edge: &Arc<Edge>,
    event: i64,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    without_body(edge, request).await?;
    let resent = edge.store.resend(event, edge.clock.now_ms()).await;
    match resent.map_err(|fault| unread(edge, &fault))? {
        Resending::Again | Resending::Pending => (),
        Resending::Unknown => return Err(unknown(event)),
    }
    edge.webhooks.wake();
    let before = Some(event.saturating_sub(1));
    let found = edge.store.deliveries(WhichDeliveries::default(), before, 1).await;
    let found = found.map_err(|fault| unread(edge, &fault))?.deliveries;
    match found.first().filter(|delivery| delivery.event == event) {
        Some(delivery) => Ok(document(StatusCode::ACCEPTED, &object(delivery))),
        None => Err(unknown(event)),
    }
}

pub(super) fn unknown(event: i64) -> Problem {
    let text = format!("there is no delivery {event}, or its job was dropped");
    Problem::new(Code::UnknownDelivery, text)
}

/// `POST /deliveries/resend`.
pub(super) async fn resend_dead(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    let owner = Caller::of(request.extensions()).sees_only();
    without_body(edge, request).await?;
    let (mut count, now_ms) = (0, edge.clock.now_ms());
    let has_more = loop {
        let many = edge.store.resend_dead(owner.clone(), now_ms).await;
        let many = many.map_err(|fault| unread(edge, &fault))?;
        count += many.count;
        if !many.has_more || count >= COUNT_MAX {
            break many.has_more;
        }
    };
    edge.webhooks.wake();
    Ok(document(StatusCode::ACCEPTED, &json!({ "count": count, "has_more": has_more })))
}
