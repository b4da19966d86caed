//! Questions to the proxy itself, which no server is asked: `SHOW pgsluice.…` and `EXPLAIN (ROUTE) …`; and the notices of
//! `pgsluice.explain`.

use std::time::Instant;

use super::super::plan::{Plan, wanted};
use super::super::request::Unit;
use super::{ClientSession, End, rules};
use crate::route::balancer::Load;
use crate::route::decide::{Decision, decide};
use crate::route::{Route, Target};
use crate::sql::{OwnQuery, StatementClass, own_query};
use crate::wire::backend::{
    BIND_COMPLETE, CLOSE_COMPLETE, NO_PARAMETERS, PARSE_COMPLETE, put_command_complete, put_ready,
};
use crate::wire::error_response::{ErrorFields, Severity};
use crate::wire::frame::HEADER;
use crate::wire::frontend::{self, Named};
use crate::wire::rows::{Column, Type, Value, put_columns, put_row};
use crate::wire::sqlstate::SqlState;

/// An answer: the name of its one column, its rows, and its command tag.
struct Answer {
    column: String,
    rows: Vec<String>,
    tag: &'static str,
}

impl ClientSession {
    /// Answers a unit that asks nothing but the proxy.
    pub(super) async fn answer_own(&mut self, plan: &Plan, unit: &Unit) -> Result<(), End> {
        let frames = &unit.frames[..plan.frames];
        let position = match Box::pin(self.asked_position(plan, unit)).await {
            Ok(position) => position,
            Err(error) => return self.report(error, plan, &unit.frames).await,
        };
        self.note_statements(frames);
        let mut out = Vec::new();
        // Texts that are parsed in this very batch, and those that its portals are of.
        let (mut parsed, mut portals) = (Vec::new(), Vec::new());
        for frame in frames {
            let body = self.client.inbox.bytes()[frame.start + HEADER..frame.end].to_vec();
            match frame.tag {
                b'Q' => {
                    if let Some(answer) = frontend::query(&body).and_then(|sql| self.own_answer(sql, &position)) {
                        answer.put_column(&mut out);
                        answer.put_rows(&mut out);
                    }
                    put_ready(&mut out, self.status());
                }
                b'P' => {
                    if let Some(parse) = frontend::parse(&body) {
                        if parse.name.is_empty() {
                            self.note_unnamed(parse.sql, parse.types);
                        }
                        parsed.push((parse.name.to_vec(), parse.sql.to_vec()));
                    }
                    out.extend_from_slice(&PARSE_COMPLETE);
                }
                b'B' => {
                    if let Some(bind) = frontend::bind(&body) {
                        portals.push((bind.portal.to_vec(), self.text_of(bind.statement, &parsed)));
                    }
                    out.extend_from_slice(&BIND_COMPLETE);
                }
                b'D' => {
                    let sql = match frontend::named(&body) {
                        Some(Named::Statement(name)) => {
                            out.extend_from_slice(&NO_PARAMETERS);
                            self.text_of(name, &parsed)
                        }
                        Some(Named::Portal(portal)) => of_name(&portals, portal),
                        None => None,
                    };
                    if let Some(answer) = sql.and_then(|sql| self.own_answer(&sql, &position)) {
                        answer.put_column(&mut out);
                    }
                }
                b'E' => {
                    let portal = frontend::c_string(&body).map_or(&[][..], |(portal, _)| portal);
                    if let Some(answer) = of_name(&portals, portal).and_then(|sql| self.own_answer(&sql, &position)) {
                        answer.put_rows(&mut out);
                    }
                }
                b'C' => out.extend_from_slice(&CLOSE_COMPLETE),
                b'S' => put_ready(&mut out, self.status()),
                _ => {}
            }
        }
        self.client.inbox.consume(plan.len);
        self.say(&out).await
    }

    fn note_unnamed(&mut self, sql: &[u8], types: &[u8]) {
        let context = self.sql_context();
        let class = self.worker.classify(sql, &context, &self.names);
        self.state.statements.set_unnamed(sql, types, class, context);
    }

    /// The text of a statement.
    pub(super) fn text_of(&self, name: &[u8], parsed: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
        let statements = &self.state.statements;
        of_name_in(parsed, name).or_else(|| match name {
            [] => statements.unnamed().map(|unnamed| unnamed.sql.clone()),
            name => statements.named(name).map(|named| named.prepared.sql.to_vec()),
        })
    }

    fn own_answer(&self, sql: &[u8], position: &str) -> Option<Answer> {
        Some(match own_query(sql, &self.sql_context())? {
            OwnQuery::Show("position") => Answer {
                column: "pgsluice.position".to_owned(),
                rows: vec![position.to_owned()],
                tag: "SHOW",
            },
            OwnQuery::Show(name) => {
                let (config, login) = (self.worker.shared.config.load(), &self.principal.login);
                let consistency = config.routing.consistency_for(&login.user, &login.database);
                let route = config.routing.route_for(&login.user, &login.database);
                Answer {
                    column: format!("pgsluice.{name}"),
                    rows: vec![self.state.own.show(name, consistency, route)],
                    tag: "SHOW",
                }
            }
            OwnQuery::ExplainRoute(statement) => Answer {
                column: "ROUTE".to_owned(),
                rows: self.explain_route(statement.as_bytes()),
                tag: "EXPLAIN",
            },
        })
    }

    fn explain_route(&self, sql: &[u8]) -> Vec<String> {
        let class = self.worker.classify(sql, &self.sql_context(), &self.names);
        let mut rows = vec![
            format!("class: {}", class.access.as_str()),
            format!("because: {}", class.reason),
        ];
        if !class.effects.is_empty() {
            let effects: Vec<String> = class.effects.iter().map(ToString::to_string).collect();
            rows.push(format!("effects: {}", effects.join(", ")));
        }
        rows.push(format!("goes to: {}", self.destination(&class)));
        rows
    }

    /// Where a statement of this class would go now.
    fn destination(&self, class: &StatementClass) -> String {
        let want = self.adjusted(wanted(class), class.fingerprint);
        let config = self.worker.shared.config.load();
        let rules = crate::route::decide::Rules {
            consistency: class.consistency.unwrap_or_else(|| self.consistency(&config)),
            position: self.state.own.min_position.as_deref().copied(),
            ..rules(&config)
        };
        let table = self.worker.shared.cluster.table();
        let (now, dice) = (Instant::now(), self.worker.dice());
        let decision = decide(
            want,
            &rules,
            &self.state.history,
            &table,
            |_| Load::default(),
            None,
            now,
            dice,
        );
        drop(table);
        match decision {
            Decision::Go(route) => self.describe(route),
            Decision::AwaitPrimary => "the primary, when there is one".to_owned(),
            Decision::AwaitStandby => "a standby, when one is fit".to_owned(),
            Decision::Impossible => "nowhere: the position that it is to see is another cluster's".to_owned(),
        }
    }

    fn describe(&self, route: Route) -> String {
        let role = match route.target {
            Target::Primary => "primary",
            Target::Standby => "standby",
        };
        format!("{} ({role}; {})", self.node_name(route), route.reason.label())
    }

    /// Where a unit goes, and why: for `pgsluice.explain`.
    pub(super) async fn tell_route(&mut self, why: &str, route: Route) -> Result<(), End> {
        let message = format!("pgsluice: goes to {}: {why}", self.describe(route));
        let mut out = Vec::new();
        ErrorFields::new(Severity::Notice, SqlState::SUCCESSFUL_COMPLETION, message).encode_notice(&mut out);
        self.say(&out).await
    }

    /// The reasons of the classes of what a unit names.
    pub(super) fn reasons(&self, plan: &Plan, unit: &Unit) -> String {
        let context = self.sql_context();
        let mut reasons: Vec<String> = Vec::new();
        for text in self.texts(plan, unit) {
            let reason = self.worker.classify(text, &context, &self.names).reason.to_string();
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        reasons.join("; ")
    }
}

impl Answer {
    /// Text is the same in both formats.
    fn put_column(&self, out: &mut Vec<u8>) {
        put_columns(out, &[Column::new(&self.column, Type::Text)], &[]);
    }

    fn put_rows(&self, out: &mut Vec<u8>) {
        for row in &self.rows {
            put_row(out, &[Value::text(&**row)], &[]);
        }
        put_command_complete(out, self.tag);
    }
}

fn of_name_in(texts: &[(Vec<u8>, Vec<u8>)], name: &[u8]) -> Option<Vec<u8>> {
    let mut latest = texts.iter().rev();
    latest.find_map(|(known, text)| (known == name).then(|| text.clone()))
}

fn of_name(portals: &[(Vec<u8>, Option<Vec<u8>>)], portal: &[u8]) -> Option<Vec<u8>> {
    let mut latest = portals.iter().rev();
    latest.find_map(|(known, text)| (known == portal).then(|| text.clone()))?
}
